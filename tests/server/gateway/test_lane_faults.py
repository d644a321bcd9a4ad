"""When an engine dies, does not start, or the client goes: what becomes of a request's lane."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from adapters.frozen import Lane
from adapters.lanes.models import Split
from server.engine.engines import EngineState
from tests.server.gateway.lane_cases import (
    MODEL,
    PATH,
    WEIGHTY_MODEL,
    ask,
    deploy,
    deployment,
    merged,
    released,
    route,
    said,
    says,
    until,
)
from tests.server.gateway.scripted import (
    CHAT,
    WEIGHTY,
    Gateway,
    ScriptedEngine,
    chunk,
    sse,
    store_blob,
)


@pytest.fixture(autouse=True)
def hot_engine(engine: ScriptedEngine) -> None:
    engine.handler = says("hot")


async def test_a_start_that_fails_says_why_to_everybody_who_comes_before_the_next(
    gateway: Gateway,
) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.fails = "ValueError: no such kernel"
    for _ in range(2):
        status, document, headers = await ask(gateway, "weighty")
        assert status == 503
        assert "ValueError: no such kernel" in document["error"]["message"]
        assert int(headers["retry-after"]) > 0
    assert place.starts == 1
    # A version that the hot lane has, too, does not suffer.
    merged(gateway, model=WEIGHTY_MODEL)
    assert said((await ask(gateway))[1]) == "hot"


async def test_a_client_that_hangs_up_while_it_waits_leaves_nothing_held(
    gateway: Gateway,
) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await ask(gateway, "weighty")
    labels = {"adapter": "weighty", "lane": "merged", "route": PATH}
    await gateway.settled("adapterctl_requests_total", 1, outcome="client_gone", **labels)
    await until(lambda: released(gateway))
    assert gateway.metric("adapterctl_requests_in_flight", adapter="weighty") == 0
    place.may_start.set()
    assert (await ask(gateway, "weighty"))[0] == 200


async def test_an_engine_that_died_unnoticed_took_nothing_and_the_hot_lane_answers(
    gateway: Gateway,
) -> None:
    place = merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "merged"
    await place.engine.stop()
    status, document, headers = await ask(gateway)
    assert (status, said(document), headers["x-adapterctl-lane"]) == (200, "hot", "hot")
    assert released(gateway)
    await place.engine.start()
    assert said((await ask(gateway))[1]) == "merged"


async def test_what_only_a_dead_engine_serves_waits_until_it_is_back(gateway: Gateway) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    assert (await ask(gateway, "weighty"))[0] == 200
    await place.engine.stop()
    asking = asyncio.create_task(ask(gateway, "weighty"))
    await asyncio.sleep(0.1)
    assert place.running is not None
    place.running.noticed_dead()
    await until(lambda: any(one.waiting for one in gateway.pool.statuses()))
    await place.engine.start()
    place.running._set(type(place.running.state).READY)
    status, document, _ = await asking
    assert (status, said(document)) == (200, "merged")
    assert released(gateway)


async def test_a_dead_base_engine_lets_a_merged_one_that_runs_anyway_answer(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """A route keeps the merged engine up beside the hot lane: either can stand in for the other."""
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    part = Split(number=1, lane=Lane.MERGED, share=0)
    gateway.registry.change("pirate", routes={"prod": route(part)})
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    assert said((await ask(gateway))[1]) == "hot"
    await engine.stop()
    status, document, headers = await ask(gateway)
    assert (status, said(document)) == (200, "merged")
    assert (headers["x-adapterctl-lane"], headers["x-adapterctl-route"]) == ("merged", "stable")
    assert (await ask(gateway, "pirate:v2"))[0] == 503
    await engine.start()
    await until(lambda: gateway.state.engine.status().state is EngineState.READY)
    assert said((await ask(gateway))[1]) == "hot"


async def die(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def test_who_dies_before_a_byte_of_the_answer_is_stood_in_for_once(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    place = merged(gateway)
    place.engine.handler = die
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    status, document, headers = await ask(gateway)
    assert (status, said(document), headers["x-adapterctl-lane"]) == (200, "hot", "hot")
    # What kills engines kills no third.
    engine.handler = die
    status, document, _ = await ask(gateway)
    assert (status, document["error"]["code"]) == (502, "engine_died")
    assert (len(place.engine.received), len(engine.received)) == (2, 2)
    assert released(gateway)


async def test_what_only_one_engine_answers_is_not_given_to_it_again_when_it_dies(
    gateway: Gateway,
) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.engine.handler = die
    status, document, _ = await ask(gateway, "weighty")
    assert (status, document["error"]["code"]) == (502, "engine_died")
    assert len(place.engine.received) == 1
    assert released(gateway)


async def test_a_model_that_is_only_kept_does_not_keep_a_request_from_waiting_for_the_base(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    await engine.stop()
    asking = asyncio.create_task(ask(gateway))
    done, _ = await asyncio.wait({asking}, timeout=0.2)
    assert not done
    await engine.start()
    status, document, _ = await asking
    assert (status, said(document)) == (200, "hot")


async def test_a_stream_that_has_begun_is_not_continued_elsewhere(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def begin_and_die(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [chunk("one", document["model"])])
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.abort()
        return response

    place = merged(gateway)
    place.engine.handler = begin_and_die
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    async with gateway.post(PATH, json={**CHAT, "stream": True}) as response:
        body = await response.read()
    assert body.startswith(chunk("one", "pirate:prod"))
    assert b'"code":"engine_died"' in body
    assert engine.received == []
