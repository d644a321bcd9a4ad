"""Canaries and shadows through HTTP: from a client's request to the registry and back."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from adapters.errors import DiskFull
from adapters.frozen import Lane
from adapters.lanes.models import Shadow, Split
from server.gateway.copying import Copying
from server.gateway.observing import Observation, Role
from server.gateway.watching import Watching
from tests.server.gateway.lane_cases import ask, released, route, until, watched
from tests.server.gateway.scripted import Gateway, ScriptedEngine, answer

CANARY = "sha256-" + "2" * 64


class Disk:
    """The registry's disk: full until there is room."""

    def __init__(self, gateway: Gateway) -> None:
        self.room = threading.Event()
        self.reasons: list[str] = []
        self._gateway = gateway

    def roll_back(
        self, adapter: str, tag: str, route_id: int, number: int, lane: Lane | None, *, reason: str
    ) -> bool:
        if not self.room.is_set():
            raise DiskFull("no room")
        self.reasons.append(reason)
        self._gateway.registry.change(adapter, routes={})
        return True


@pytest.fixture
def disk(gateway: Gateway) -> Disk:
    return Disk(gateway)


@pytest.fixture
def copies() -> list[Observation]:
    return []


@pytest.fixture
async def watching(
    gateway: Gateway, disk: Disk, copies: list[Observation]
) -> AsyncIterator[Watching]:
    """Joined to the gateway as the server joins it."""
    state = gateway.state
    copying = Copying(state.placing, state.lanes, state.documents)
    made = Watching(
        state.settings, state.snapshot, disk.roll_back, copying, state.metrics, copies.append
    )
    state.observers.append(made.observe)
    # The fixture's state is made before; it is frozen for everybody else.
    object.__setattr__(state, "withdrawn", made.withdrawn)
    async with made.running():
        yield made


async def test_a_broken_canary_gets_no_more_requests_at_once_and_loses_its_split(
    gateway: Gateway, engine: ScriptedEngine, watching: Watching, disk: Disk
) -> None:
    async def canary_is_silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] != CANARY:
            return await answer(request, body)
        choice = {"message": {"content": ""}, "finish_reason": "stop"}
        return web.json_response({"model": body["model"], "choices": [choice]})

    engine.handler = canary_is_silent
    gateway.registry.change("pirate", routes={"prod": watched(Split(number=2, share=0.2))})
    roles = []
    for number in range(150):
        _, _, headers = await ask(gateway, headers={"x-request-id": f"request-{number}"})
        roles.append(headers.get("x-adapterctl-route"))
    canaries = roles.count("canary")
    assert 10 <= canaries <= 15
    # The registry has not heard of it yet.
    assert disk.reasons == []
    assert set(roles[-60:]) == {"stable"}
    (status,) = watching.status(7).canaries
    assert (status.number, status.lane, status.requests) == (2, "hot", canaries)
    assert status.verdict.startswith("taken back: ")
    disk.room.set()
    await until(lambda: bool(disk.reasons))
    assert f"{canaries} of {canaries} answers degenerate (empty) against 0 of" in disk.reasons[0]
    _, _, headers = await ask(gateway)
    assert "x-adapterctl-route" not in headers
    await gateway.settled(
        "adapterctl_canary_rollbacks_total", 1, adapter="pirate", reason="degenerate"
    )


async def test_a_shadow_gets_its_copy_after_the_answer_and_nobody_sees_its_own(
    gateway: Gateway,
    engine: ScriptedEngine,
    watching: Watching,
    copies: list[Observation],
) -> None:
    async def shadow_fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["model"] == CANARY:
            return web.json_response({"error": {"message": "no"}}, status=500)
        return await answer(request, body)

    engine.handler = shadow_fails
    shadowed = route(shadows=(Shadow(number=2, share=1),))
    gateway.registry.change("pirate", routes={"prod": shadowed})
    for _ in range(3):
        status, _, headers = await ask(gateway)
        assert status == 200
        assert headers["x-adapterctl-version"] == "pirate:v1"
    await until(lambda: len(copies) == 3)
    assert {(o.role, o.number, o.outcome) for o in copies} == {(Role.SHADOW, 2, "engine_500")}
    assert engine.headers[0]["x-vllm-priority"] == "0"
    assert [document["model"] for document in engine.received].count(CANARY) == 3
    (shadow,) = watching.status(7).shadows
    assert (shadow.sent, shadow.errors) == (3, 3)
    await until(lambda: released(gateway))
