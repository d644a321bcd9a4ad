"""Routes through HTTP: who gets the canary, what answers say of it, what observers are told."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from adapters.frozen import Lane
from adapters.lanes.models import Split
from server.gateway.observing import ANSWER_LIMIT, Observation, Role
from tests.server.gateway.lane_cases import (
    MODEL,
    ask,
    deploy,
    deployment,
    route,
    said,
    says,
    until,
    watched,
)
from tests.server.gateway.scripted import (
    CHAT,
    DONE,
    PIRATE,
    PIRATE_2,
    Gateway,
    ScriptedEngine,
    chunk,
    sse,
)

HALF = Split(number=2, share=0.5)


@pytest.fixture(autouse=True)
def hot_engine(engine: ScriptedEngine) -> None:
    engine.handler = says("hot")


@pytest.fixture
def seen(gateway: Gateway) -> list[Observation]:
    found: list[Observation] = []
    gateway.state.observers.append(found.append)
    return found


def put(gateway: Gateway, one: Any) -> None:
    gateway.registry.change("pirate", routes={"prod": one})


async def test_a_share_goes_to_the_canary_and_the_same_request_id_always_there(
    gateway: Gateway, seen: list[Observation]
) -> None:
    put(gateway, route(HALF))

    async def versions() -> list[str]:
        answers = [
            await ask(gateway, headers={"x-request-id": f"request-{index}"}) for index in range(40)
        ]
        for _, _, headers in answers:
            canary = headers["x-adapterctl-version"] == "pirate:v2"
            assert headers["x-adapterctl-route"] == ("canary" if canary else "stable")
            assert headers["x-adapterctl-digest"] == (PIRATE_2 if canary else PIRATE)
        return [headers["x-adapterctl-version"] for _, _, headers in answers]

    first = await versions()
    assert 8 < first.count("pirate:v2") < 32
    assert await versions() == first
    await until(lambda: len(seen) == 80)
    roles = {(one.role, one.number, one.route) for one in seen}
    assert roles == {(Role.CANARY, 2, 7), (Role.STABLE, 1, 7)}


async def test_a_version_a_digest_and_another_tag_are_not_routed(gateway: Gateway) -> None:
    put(gateway, route(Split(number=2, share=1.0)))
    assert (await ask(gateway))[2]["x-adapterctl-version"] == "pirate:v2"
    for reference in ("pirate:v1", f"pirate@{PIRATE}"):
        _, _, headers = await ask(gateway, reference)
        assert headers["x-adapterctl-version"] == "pirate:v1"
        assert "x-adapterctl-route" not in headers


@pytest.mark.parametrize(
    "said_by",
    [
        {"user": "ann"},
        {"safety_identifier": "ann"},
        {"metadata": {"user_id": "ann"}},
        {"headers": {"x-user-id": "ann"}},
    ],
    ids=lambda value: next(iter(value)),
)
async def test_a_sticky_route_keeps_a_user_on_one_side_however_the_user_is_named(
    gateway: Gateway, said_by: dict[str, Any]
) -> None:
    put(gateway, route(HALF, sticky="user"))
    versions = {(await ask(gateway, **said_by))[2]["x-adapterctl-version"] for _ in range(6)}
    assert len(versions) == 1
    by_body = (await ask(gateway, user="ann"))[2]["x-adapterctl-version"]
    assert versions == {by_body}
    others = {
        (await ask(gateway, user=f"user-{index}"))[2]["x-adapterctl-version"] for index in range(24)
    }
    assert others == {"pirate:v1", "pirate:v2"}


async def test_a_header_leads_to_the_canary_without_a_share(gateway: Gateway) -> None:
    put(gateway, route(Split(number=2, share=0.0, header=("x-canary", "1"))))
    assert (await ask(gateway))[2]["x-adapterctl-route"] == "stable"
    _, _, headers = await ask(gateway, headers={"X-Canary": "1"})
    assert (headers["x-adapterctl-version"], headers["x-adapterctl-route"]) == (
        "pirate:v2",
        "canary",
    )


async def test_a_part_may_go_to_the_other_lane_of_the_same_version(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    gateway.places.of(MODEL).engine.handler = says("merged")
    put(gateway, route(Split(number=1, lane=Lane.MERGED, share=0.5, follows=True)))
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    lanes = []
    for index in range(24):
        _, document, headers = await ask(gateway, headers={"x-request-id": f"r{index}"})
        assert said(document) == headers["x-adapterctl-lane"]
        assert headers["x-adapterctl-version"] == "pirate:v1"
        lanes.append(headers["x-adapterctl-lane"])
    assert set(lanes) == {"hot", "merged"}


async def test_a_canary_that_is_taken_out_of_service_leaves_everything_to_the_stable_one(
    gateway: Gateway, seen: list[Observation]
) -> None:
    put(gateway, route(Split(number=2, share=1.0)))
    assert (await ask(gateway))[2]["x-adapterctl-route"] == "canary"
    deploy(gateway, deployment("pirate", 2, None))
    status, _, headers = await ask(gateway)
    assert status == 200
    assert (headers["x-adapterctl-version"], headers["x-adapterctl-route"]) == (
        "pirate:v1",
        "stable",
    )


async def test_a_watched_route_keeps_answers_and_what_was_asked(
    gateway: Gateway, engine: ScriptedEngine, seen: list[Observation]
) -> None:
    async def long(request: Any, document: Any) -> Any:
        return await sse(request, [chunk("x" * 20_000, document["model"])] * 5 + [DONE])

    put(gateway, watched(Split(number=2, share=1.0)))
    await ask(gateway, headers={"x-request-id": "r-1"})
    engine.handler = long
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        body = await response.read()
    await until(lambda: len(seen) == 2)
    whole, stream = seen
    assert whole.answer is not None
    assert b'"content": "hot"' in whole.answer
    assert stream.answer == body[:ANSWER_LIMIT]
    assert whole.asked is not None
    assert (whole.asked.request_id, whole.asked.role) == ("r-1", Role.CANARY)
    assert whole.asked.stable.number == 1
    assert b'"hi"' in whole.asked.body
    put(gateway, route(Split(number=2, share=1.0)))
    engine.handler = says("hot")
    await ask(gateway)
    await until(lambda: len(seen) == 3)
    assert seen[2].answer is None


async def test_a_split_that_is_taken_back_gets_nothing_before_the_registry_says_so(
    gateway: Gateway,
) -> None:
    put(gateway, route(Split(number=2, share=1.0)))
    asked: list[tuple[int, int, Lane | None]] = []

    def withdrawn(route_id: int, number: int, lane: Lane | None) -> bool:
        asked.append((route_id, number, lane))
        return len(asked) > 1

    # As the server is made with it; the document of state is frozen.
    object.__setattr__(gateway.state, "withdrawn", withdrawn)
    assert (await ask(gateway))[2]["x-adapterctl-route"] == "canary"
    _, _, headers = await ask(gateway)
    assert (headers["x-adapterctl-version"], headers["x-adapterctl-route"]) == (
        "pirate:v1",
        "stable",
    )
    assert asked == [(7, 2, None)] * 2


async def test_a_switch_of_the_tag_is_one_choice_for_each_request(gateway: Gateway) -> None:
    """Never the version of one snapshot with the deployment or the route of another."""
    deploy(gateway, deployment("pirate", 2, Lane.MERGED, MODEL))
    gateway.places.of(MODEL).engine.handler = says("merged")
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))

    async def switching() -> None:
        for number in itertools.count():
            to = 1 if number % 2 else 2
            gateway.registry.change("pirate", tags={"prod": to, "latest": 2})
            await asyncio.sleep(0.005)

    switches = asyncio.create_task(switching())
    pairs: set[tuple[str, str, str]] = set()
    # However slow the machine is, it must see both.
    asked = 0
    while asked < 30 or (len(pairs) < 2 and asked < 1000):
        asked += 1
        status, document, headers = await ask(gateway)
        assert status == 200
        pairs.add((headers["x-adapterctl-version"], headers["x-adapterctl-lane"], said(document)))
    switches.cancel()
    assert pairs == {("pirate:v1", "hot", "hot"), ("pirate:v2", "merged", "merged")}
