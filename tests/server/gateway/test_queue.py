"""The queue in the request path: real HTTP in front, a scripted engine behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from adapters.errors import Overloaded
from server.gateway.admission.doors import BASE, Doors
from server.gateway.admission.limits import Limits
from server.gateway.admission.tickets import Cost, Ticket
from server.gateway.admission.wiring import Admission, QueueState
from server.gateway.lanes import Lanes
from tests.server.gateway.held import Held
from tests.server.gateway.scripted import CHAT, DONE, USAGE, Gateway, ScriptedEngine, chunk

BASE_CHAT = {**CHAT, "model": "tiny"}


def limit(gateway: Gateway, slots: int | None = None, **limits: Any) -> list[str]:
    """Other doors for the gateway under test; the adapters that were asked for early."""
    hinted: list[str] = []
    lanes: Lanes = gateway.state.lanes
    lanes.doors = Doors(Limits(**limits), slots=lambda: slots, prefetch=hinted.append)
    return hinted


def queue(gateway: Gateway) -> QueueState:
    return gateway.state.lanes.doors.states()[BASE]


async def queued(gateway: Gateway, count: int) -> None:
    async with asyncio.timeout(5):
        while queue(gateway).queued != count:
            await asyncio.sleep(0.005)


@pytest.fixture
async def asking(gateway: Gateway) -> AsyncIterator[Any]:
    tasks: list[asyncio.Task[tuple[int, Any, Any]]] = []

    def ask(body: dict[str, Any], **headers: str) -> asyncio.Task[tuple[int, Any, Any]]:
        async def answered() -> tuple[int, Any, Any]:
            async with gateway.post("/v1/chat/completions", json=body, headers=headers) as response:
                return response.status, response.headers, await response.json()

        tasks.append(asyncio.create_task(answered()))
        return tasks[-1]

    yield ask
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_what_is_too_much_waits_and_is_told_how_long(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1)
    first = asking(BASE_CHAT)
    await held.has(1)
    second = asking(BASE_CHAT)
    await queued(gateway, 1)
    assert queue(gateway).waiting_for == {"place": 1, "slot": 0, "prompt": 0}
    assert len(held.models) == 1
    held.answer(2)
    _, headers, _ = await first
    assert headers["x-adapterctl-queued"] == "0"
    status, headers, _ = await second
    assert status == 200
    assert int(headers["x-adapterctl-queued"]) > 0
    assert queue(gateway).in_flight == queue(gateway).queued == 0


async def test_a_full_queue_is_a_429_with_retry_after(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1, queued=1)
    first = asking(BASE_CHAT)
    await held.has(1)
    second = asking(BASE_CHAT)
    await queued(gateway, 1)
    status, headers, body = await asking(BASE_CHAT)
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert body["error"]["code"] == "overloaded"
    assert body["error"]["type"] == "rate_limit_error"
    held.answer(2)
    assert [(await one)[0] for one in (first, second)] == [200, 200]
    assert queue(gateway).refused == {"full": 1}


async def test_one_tenant_cannot_fill_the_queue(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1, queued=10, queued_per_tenant=1)
    running = [asking(BASE_CHAT, **{"x-tenant": "flood"})]
    await held.has(1)
    running.append(asking(BASE_CHAT, **{"x-tenant": "flood"}))
    await queued(gateway, 1)
    status, _, body = await asking(BASE_CHAT, **{"x-tenant": "flood"})
    assert (status, "this tenant" in body["error"]["message"]) == (429, True)
    # Another one finds a place at once: it is below its share.
    running.append(asking(BASE_CHAT, **{"x-tenant": "quiet"}))
    await held.has(2)
    held.answer(3)
    assert [(await one)[0] for one in running] == [200, 200, 200]


async def test_a_wait_that_takes_too_long_is_a_429(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1, timeout=0.05)
    first = asking(BASE_CHAT)
    await held.has(1)
    status, headers, _ = await asking(BASE_CHAT)
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert queue(gateway).queued == 0
    held.answer()
    assert (await first)[0] == 200
    name = "adapterctl_requests_total"
    labels = {"adapter": "tiny", "lane": "base", "route": "/v1/chat/completions"}
    await gateway.settled(name, 1, outcome="overloaded", **labels)


async def test_a_client_that_hangs_up_leaves_the_queue(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1)
    first = asking(BASE_CHAT)
    await held.has(1)
    second, third = asking(BASE_CHAT), asking(BASE_CHAT)
    await queued(gateway, 2)
    second.cancel()
    await queued(gateway, 1)
    held.answer(2)
    assert [(await one)[0] for one in (first, third)] == [200, 200]
    assert len(held.models) == 2


async def test_adapters_at_the_engine_never_exceed_its_slots(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    hinted = limit(gateway, slots=1)
    pirate = asking(CHAT)
    await held.has(1)
    weighty = asking({**CHAT, "model": "weighty:prod"})
    await queued(gateway, 1)
    assert queue(gateway).waiting_for == {"place": 0, "slot": 1, "prompt": 0}
    # It is known early what will be needed, and the base itself needs no slot.
    assert hinted == ["sha256:" + "1" * 64, "sha256:" + "3" * 64]
    base = asking(BASE_CHAT)
    await held.has(2)
    held.answer(3)
    assert [(await one)[0] for one in (pirate, weighty, base)] == [200, 200, 200]
    assert held.models[1] == "tiny"


async def test_questions_about_tokens_need_no_place(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    held = Held(engine)
    limit(gateway, places=1, queued=0)
    first = asking(BASE_CHAT)
    await held.has(1)
    held.answer(2)
    async with gateway.post("/tokenize", json={"model": "tiny", "prompt": "x"}) as response:
        assert response.status == 200
        assert response.headers["x-adapterctl-queued"] == "0"
    assert (await first)[0] == 200


async def test_what_waits_goes_on_when_the_engine_dies(
    gateway: Gateway, engine: ScriptedEngine, asking: Any
) -> None:
    dying = asyncio.Event()

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if not dying.is_set():
            await dying.wait()
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"model": document["model"], "choices": []})

    engine.handler = handler
    limit(gateway, places=1)
    first = asking(BASE_CHAT)
    async with asyncio.timeout(5):
        while not engine.received:
            await asyncio.sleep(0.005)
    second = asking(BASE_CHAT)
    await queued(gateway, 1)
    dying.set()
    assert (await first)[0] == 502
    assert (await second)[0] == 200
    assert queue(gateway).in_flight == 0


async def test_a_stream_counts_its_tokens_and_ends_with_the_engines_count(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in (chunk("a"), chunk("b"), USAGE, DONE):
            await response.write(event)
        return response

    engine.handler = handler
    limit(gateway)
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        await response.read()
        assert response.headers["x-adapterctl-queued"] == "0"
    await gateway.settled("adapterctl_requests_in_flight", 0, adapter="pirate")
    async with asyncio.timeout(5):
        while queue(gateway).in_flight:
            await asyncio.sleep(0.005)
    (tenant,) = queue(gateway).tenants
    # 3 tokens read, 2 written, which count twice.
    assert tenant.service == 3 + 2 * 2


async def test_a_restarted_engine_begins_with_nothing() -> None:
    admission = Admission(Limits(places=1), slots=2)
    admission.alive("first life", slots=2, pinned=frozenset())
    running = admission.enter(Ticket("a", None, Cost()))
    waiting = admission.enter(Ticket("a", None, Cost()))
    assert (running.admitted, waiting.admitted) == (True, False)
    admission.alive("second life", slots=2, pinned=frozenset())
    await waiting.turn(1)
    assert waiting.admitted
    running.release()
    waiting.release()
    waiting.release()
    assert admission.idle


async def test_a_turn_that_does_not_come_leaves_nothing_behind() -> None:
    admission = Admission(Limits(places=1), slots=None)
    running = admission.enter(Ticket("a", None, Cost()))
    waiting = admission.enter(Ticket("a", None, Cost()))
    with pytest.raises(Overloaded, match="waited"):
        await waiting.turn(0.01)
    waiting.release()
    cancelled = asyncio.create_task(admission.enter(Ticket("a", None, Cost())).turn(5))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert admission.enter_background(Ticket("", None, Cost())) is None
    running.release()
