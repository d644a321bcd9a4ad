"""Which engine answers: the base's, a merged one, or the one of the two that is ready."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from adapters.frozen import Lane
from tests.server.gateway.lane_cases import (
    MODEL,
    MODEL_AWQ,
    PATH,
    WEIGHTY_MODEL,
    ask,
    deploy,
    deployment,
    merged,
    released,
    said,
    says,
    until,
)
from tests.server.gateway.scripted import (
    CHAT,
    DONE,
    PIRATE,
    WEIGHTY,
    Gateway,
    ScriptedEngine,
    chunk,
    sse,
    store_blob,
)

MERGED_NAME = "sha256-" + "6" * 64


@pytest.fixture(autouse=True)
def hot_engine(engine: ScriptedEngine) -> None:
    engine.handler = says("hot")


async def test_a_deployed_version_is_answered_by_its_own_engine(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    place = merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    status, document, headers = await ask(gateway)
    assert (status, said(document), document["model"]) == (200, "merged", "pirate:prod")
    assert place.engine.received[0]["model"] == MERGED_NAME
    assert headers["x-adapterctl-lane"] == "merged"
    assert headers["x-adapterctl-version"] == "pirate:v1"
    # What answers is the version, by whatever engine.
    assert headers["x-adapterctl-digest"] == PIRATE
    assert engine.received == []
    labels = {"adapter": "pirate", "lane": "merged", "route": PATH, "outcome": "ok"}
    await gateway.settled("adapterctl_requests_total", 1, **labels)
    assert released(gateway)
    # Its other version stays where it was.
    status, document, headers = await ask(gateway, "pirate:v2")
    assert (said(document), headers["x-adapterctl-lane"]) == ("hot", "hot")


async def test_while_its_engine_starts_the_hot_lane_answers(gateway: Gateway) -> None:
    place = merged(gateway)
    place.may_start.clear()
    for _ in range(3):
        status, document, headers = await ask(gateway)
        assert (status, said(document), headers["x-adapterctl-lane"]) == (200, "hot", "hot")
    await until(lambda: place.starts == 1)
    place.may_start.set()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "merged"


async def test_while_its_model_is_made_the_hot_lane_answers(gateway: Gateway) -> None:
    deploy(gateway, deployment("pirate", 1, Lane.MERGED, None, job="j1"))
    assert said((await ask(gateway))[1]) == "hot"
    merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "merged"


async def test_what_only_its_own_engine_serves_waits_for_the_start(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    asking = asyncio.create_task(ask(gateway, "weighty"))
    await until(lambda: any(one.waiting for one in gateway.pool.statuses()))
    place.may_start.set()
    status, document, headers = await asking
    assert (status, said(document)) == (200, "merged")
    assert headers["x-adapterctl-version"] == "weighty:v2"
    assert engine.received == []


async def test_a_start_that_takes_too_long_is_a_503_that_says_when_to_come_back(
    gateway: Gateway,
) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    status, document, headers = await ask(gateway, "weighty")
    assert status == 503
    assert "weighty:v2 is starting (waited 1 s)" in document["error"]["message"]
    assert int(headers["retry-after"]) > 0
    labels = {"adapter": "weighty", "lane": "merged", "route": PATH}
    name = "adapterctl_requests_total"
    await gateway.settled(name, 1, outcome="engine_unavailable", **labels)
    await until(lambda: released(gateway))


async def test_a_stream_ends_on_the_engine_that_began_it_whatever_is_switched(
    gateway: Gateway,
) -> None:
    go_on = asyncio.Event()

    async def slowly(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [chunk("one", document["model"])])
        await go_on.wait()
        await response.write(chunk("two", document["model"]) + DONE)
        return response

    place = merged(gateway)
    place.engine.handler = slowly
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    async with gateway.post(PATH, json={**CHAT, "stream": True}) as response:
        assert response.headers["x-adapterctl-lane"] == "merged"
        first = await response.content.readuntil(b"\n\n")
        deploy(gateway, deployment("pirate", 1, None, MODEL))
        # Out of service for whoever comes now …
        status, document, _ = await ask(gateway)
        assert (status, document["error"]["code"]) == (404, "not_deployed")
        assert "taken out of service" in document["error"]["message"]
        assert not place.stopped.is_set()
        go_on.set()
        # … and whole for whoever was being answered.
        rest = await response.content.read()
    assert first + rest == chunk("one", "pirate:prod") + chunk("two", "pirate:prod") + DONE
    async with asyncio.timeout(5):
        await place.stopped.wait()
    assert gateway.pool.statuses() == []


async def test_back_in_the_hot_lane_the_next_request_is_answered_there(gateway: Gateway) -> None:
    place = merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "merged"
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    assert said((await ask(gateway))[1]) == "hot"
    async with asyncio.timeout(5):
        await place.stopped.wait()
    # And over again: an engine that was let go of is started anew.
    deploy(gateway, deployment("pirate", 1, Lane.MERGED, MODEL))
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "merged"


async def test_who_waits_for_a_model_that_is_replaced_gets_the_new_one(gateway: Gateway) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    asking = asyncio.create_task(ask(gateway, "weighty"))
    await until(lambda: any(one.waiting for one in gateway.pool.statuses()))
    other = merged(gateway, "weighty", MODEL_AWQ)
    other.engine.handler = says("requantized")
    gateway.state.keep_up()
    status, document, _ = await asking
    assert (status, said(document)) == (200, "requantized")
    assert released(gateway)


async def test_what_is_undeployed_while_it_is_waited_for_is_a_404(gateway: Gateway) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    asking = asyncio.create_task(ask(gateway, "weighty"))
    await until(lambda: any(one.waiting for one in gateway.pool.statuses()))
    deploy(gateway, deployment("weighty", 2, None, WEIGHTY_MODEL))
    gateway.state.keep_up()
    status, document, _ = await asking
    assert (status, document["error"]["code"]) == (404, "not_deployed")


async def test_a_request_of_an_older_snapshot_does_not_call_back_what_was_let_go(
    gateway: Gateway,
) -> None:
    place = merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    old = gateway.registry.current().adapters["pirate"]
    ways = gateway.state.placing.of_version("pirate:v1", old, old.versions[1], None)
    running = gateway.state.lanes.at_once(ways)
    assert running is not None
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    gateway.state.keep_up()
    late = gateway.state.lanes.at_once(ways)
    assert late is not None
    assert late.lane == "hot"
    late.release()
    running.release()
    async with asyncio.timeout(5):
        await place.stopped.wait()
    await until(lambda: gateway.pool.statuses() == [])
    assert place.starts == 1


async def test_the_model_list_has_what_is_answerable_now(gateway: Gateway) -> None:
    async def listed() -> dict[str, str | None]:
        async with gateway.get("/v1/models") as response:
            return {one["id"]: one["lane"] for one in (await response.json())["data"]}

    assert "weighty" not in await listed()
    # Of another base, and so by an engine of its own in any case.
    deploy(gateway, deployment("elsewhere", 1, Lane.MERGED, MODEL_AWQ))
    merged(gateway, "weighty", WEIGHTY_MODEL)
    merged(gateway)
    models = await listed()
    assert (models["weighty"], models["pirate:prod"], models["pirate"]) == ("merged",) * 2 + (
        "hot",
    )
    assert models["elsewhere"] == "merged"
    async with gateway.get("/v1/models/weighty") as response:
        assert (response.status, (await response.json())["lane"]) == (200, "merged")
    deploy(gateway, deployment("pirate", 2, None))
    models = await listed()
    assert "pirate" not in models
    assert "pirate:prod" in models
    async with gateway.get("/v1/models/pirate:v2") as response:
        assert response.status == 404


async def test_a_version_of_another_base_is_answered_when_it_is_deployed_merged(
    gateway: Gateway,
) -> None:
    status, document, _ = await ask(gateway, "elsewhere")
    assert (status, document["error"]["code"]) == (409, "adapter_not_loadable")
    digest = gateway.registry.snapshot.adapters["elsewhere"].versions[1].digest
    store_blob(gateway.state.settings.store, digest)
    deploy(gateway, deployment("elsewhere", 1, Lane.MERGED, MODEL_AWQ))
    status, document, headers = await ask(gateway, "elsewhere")
    assert (status, said(document), headers["x-adapterctl-lane"]) == (200, "merged", "merged")


async def test_a_job_that_makes_the_model_is_named_and_one_that_failed_is_final(
    gateway: Gateway,
) -> None:
    deploy(gateway, deployment("weighty", 2, Lane.MERGED, None, job="j42"))
    status, document, headers = await ask(gateway, "weighty")
    assert (status, headers["retry-after"]) == (503, "30")
    assert "adapterctl jobs show j42" in document["error"]["message"]
    failed = deployment("weighty", 2, Lane.MERGED, None, job="j42", problem="failed: disk full")
    deploy(gateway, failed)
    status, document, _ = await ask(gateway, "weighty")
    assert (status, document["error"]["code"]) == (404, "not_deployed")
    assert "job j42: failed: disk full" in document["error"]["message"]


async def test_pool_metrics(gateway: Gateway) -> None:
    merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    await ask(gateway)
    labels = {"model": MODEL, "version": "pirate:v1"}
    assert gateway.metric("adapterctl_merged_engine_up", **labels) == 1
    assert gateway.metric("adapterctl_merged_engine_events_total", event="start") == 1
    assert gateway.metric("adapterctl_merged_engine_start_seconds", **labels) > 0
    requests = "adapterctl_merged_engine_requests"
    assert gateway.metric(requests, state="in_flight", **labels) == 0
    memory = "adapterctl_engine_memory_bytes"
    assert 0 < gateway.metric(memory, part="merged") < gateway.metric(memory, part="limit")


async def test_sixty_four_streams_over_both_lanes_do_not_mix(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """While one of them goes from lane to lane, each answer is of one engine and whole."""

    def words(lane: str) -> Any:
        async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
            word = f"{lane} {document['messages'][0]['content']}"
            return await sse(request, [chunk(word, document["model"])] * 5 + [DONE])

        return handler

    engine.handler = words("hot")
    place = merged(gateway)
    place.engine.handler = words("merged")
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    seen: set[str] = set()

    async def one(index: int) -> None:
        request = {
            "model": "pirate:v1",
            "messages": [{"role": "user", "content": f"w{index}"}],
            "stream": True,
        }
        async with gateway.post(PATH, json=request) as response:
            lane = response.headers["x-adapterctl-lane"]
            body = await response.read()
        assert body == chunk(f"{lane} w{index}", "pirate:v1") * 5 + DONE
        seen.add(lane)

    async def switching() -> None:
        for number in range(20):
            lane = Lane.HOT if number % 2 == 0 else Lane.MERGED
            deploy(gateway, deployment("pirate", 1, lane, MODEL))
            await asyncio.sleep(0.01)

    switches = asyncio.create_task(switching())
    for start in range(0, 64, 8):
        await asyncio.gather(*(one(index) for index in range(start, start + 8)))
    await switches
    assert seen == {"hot", "merged"}
    await until(lambda: released(gateway))
