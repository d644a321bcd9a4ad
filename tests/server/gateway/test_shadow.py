"""Copies for shadows: after the real answer, when there is room, compared, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from adapters.lanes.models import Shadow
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.copying import LAST, Copying
from server.gateway.observing import Answered, Observation, Role
from server.gateway.shadow import ShadowLimits, Shadows
from tests.server.gateway.asked import ROUTE, asked, ended
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, chunk, sse, stream

SHADOWED = "sha256-" + "2" * 64


class Copies:
    """Shadows that run on the scripted engine, and what they told."""

    def __init__(self, gateway: Gateway, **limits: Any) -> None:
        state = gateway.state
        self.told: list[Observation] = []
        self.gateway = gateway
        self.shadows = Shadows(
            Copying(state.placing, state.lanes, state.documents),
            CanaryMetrics(state.metrics),
            ShadowLimits(**{"queue": 8, "busiest": 1, "deadline": 5.0, **limits}),
            self.told.append,
        )

    def count(self, outcome: str) -> float:
        name = "adapterctl_shadow_requests_total"
        return self.gateway.metric(name, adapter="pirate", outcome=outcome)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def copies(gateway: Gateway) -> AsyncIterator[Callable[..., Copies]]:
    tasks: list[asyncio.Task[None]] = []

    def make(**limits: Any) -> Copies:
        made = Copies(gateway, **limits)
        tasks.append(asyncio.create_task(made.shadows.run()))
        return made

    yield make
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_copy_goes_to_the_shadow_and_is_told_as_one(
    engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    engine.handler = answer
    made = copies()
    made.shadows.observe(ended(asked({**CHAT, "temperature": 0.5, "store": True, "priority": -5})))
    await made.until(lambda: bool(made.told))
    (document,), (headers,) = engine.received, engine.headers
    assert document == {**CHAT, "model": SHADOWED, "temperature": 0.5}
    assert headers["x-vllm-priority"] == LAST
    (o,) = made.told
    assert (o.adapter, o.number, o.lane, o.role, o.route) == ("pirate", 2, "hot", Role.SHADOW, 3)
    assert (o.outcome, o.prompt_tokens, o.completion_tokens) == ("ok", 7, 4)
    assert 0 < o.seconds < 5
    (status,) = made.shadows.status(ROUTE.id)
    assert (status.number, status.sent, status.same, status.errors) == (2, 1, 1, 0)
    assert (status.tokens, status.real_tokens) == (4, 4)
    assert made.count("ok") == 1
    assert made.gateway.metric("adapterctl_shadow_same_answers_total", adapter="pirate") == 1
    assert not made.gateway.state.lanes.in_flight()


async def test_a_stream_is_copied_as_a_stream_and_compared(
    engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    engine.handler = stream
    made = copies()
    made.shadows.observe(ended(asked({**CHAT, "stream": True}), answer=b"{}"))
    await made.until(lambda: bool(made.told))
    (o,) = made.told
    assert o.first_token is not None
    assert 0 < o.first_token <= o.seconds
    assert (o.prompt_tokens, o.completion_tokens) == (3, 2)
    assert engine.received[0]["stream_options"] == {"include_usage": True}
    (status,) = made.shadows.status(ROUTE.id)
    assert status.same == 0


async def test_failures_and_degenerate_copies_are_counted_and_touch_nobody(
    engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    async def failing(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=500)

    async def looping(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": [{"message": {"content": "so and " * 99}}]})

    async def breaking(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [chunk("a", SHADOWED)])
        assert request.transport is not None
        request.transport.abort()
        return response

    made = copies()
    for number, handler in enumerate((failing, looping, breaking), 1):
        engine.handler = handler
        made.shadows.observe(ended(asked({**CHAT, "stream": handler is breaking})))
        await made.until(lambda number=number: len(made.told) == number)  # type: ignore[misc]
    assert [o.outcome for o in made.told] == ["engine_500", "ok", "engine_died"]
    (status,) = made.shadows.status(ROUTE.id)
    assert (status.sent, status.errors, status.degenerate) == (3, 2, 1)


async def test_one_copy_at_a_time_and_what_does_not_fit_is_dropped(
    engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    go_on, at_once, most = asyncio.Event(), 0, 0

    async def slow(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await go_on.wait()
        at_once -= 1
        return await answer(request, document)

    engine.handler = slow
    made = copies(queue=3)
    for _ in range(10):
        made.shadows.observe(ended(asked()))
    assert made.count("dropped_full") == 7
    await made.until(lambda: most == 1)
    go_on.set()
    await made.until(lambda: len(made.told) == 3)
    assert most == 1
    (status,) = made.shadows.status(ROUTE.id)
    assert (status.sent, status.dropped) == (3, 7)


async def test_while_clients_keep_the_engine_busy_copies_wait_and_then_are_dropped(
    gateway: Gateway, engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    engine.handler = answer
    one = asked()
    ways = gateway.state.placing.of_version("pirate", one.adapter, one.stable, None)
    holds = [gateway.state.lanes.hold_now(ways) for _ in range(2)]
    made = copies(deadline=0.3)
    made.shadows.observe(ended(one))
    await made.until(lambda: made.count("dropped_late") == 1)
    assert engine.received == []
    made.shadows.observe(ended(one))
    for hold in holds:
        assert hold is not None
        hold.release()
    await made.until(lambda: bool(made.told))


async def test_a_copy_that_takes_too_long_is_given_up(
    engine: ScriptedEngine, copies: Callable[..., Copies]
) -> None:
    async def never(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    engine.handler = never
    made = copies(deadline=0.2)
    made.shadows.observe(ended(asked()))
    await made.until(lambda: bool(made.told))
    assert made.told[0].outcome == "engine_timeout"
    assert not made.gateway.state.lanes.in_flight()


def unshadowed() -> Answered:
    return asked(route=ROUTE.model_copy(update={"shadows": ()}))


async def test_what_is_not_copied(gateway: Gateway) -> None:
    made = Copies(gateway)
    made.shadows.observe(ended(unshadowed()))
    made.shadows.observe(ended(asked(), outcome="engine_500"))
    made.shadows.observe(ended(asked(), role=Role.SHADOW))
    made.shadows.observe(ended(asked(), asked=None))
    removed = ROUTE.model_copy(update={"shadows": (Shadow(number=9, share=1),)})
    running = asyncio.create_task(made.shadows.run())
    made.shadows.observe(ended(asked(route=removed)))
    await made.until(lambda: made.count("dropped_late") == 1)
    assert made.told == []
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
