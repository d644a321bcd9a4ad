"""What observers hear of an ended request."""

from __future__ import annotations

import pytest

from server.gateway.observing import Observation, Role
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, stream


async def test_every_ended_request_is_told_once(gateway: Gateway, engine: ScriptedEngine) -> None:
    seen: list[Observation] = []
    gateway.state.observers.append(seen.append)
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        await response.read()
    engine.handler = stream
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        await response.read()
    await gateway.settled("adapterctl_requests_in_flight", 0, adapter="pirate")
    whole, streamed = seen
    for one in seen:
        assert (one.adapter, one.number, one.lane, one.role) == ("pirate", 1, "hot", Role.PLAIN)
        assert (one.route, one.path, one.outcome) == (None, "/v1/chat/completions", "ok")
        assert one.answer is None
        assert 0 <= one.waited < one.seconds
    assert (whole.prompt_tokens, whole.completion_tokens, whole.first_token) == (7, 4, None)
    assert (streamed.prompt_tokens, streamed.completion_tokens) == (3, 2)
    assert streamed.first_token is not None
    assert 0 < streamed.first_token <= streamed.seconds
    assert whole.ended < streamed.ended


async def test_a_failure_is_told_with_its_code_and_the_base_by_its_name(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    seen: list[Observation] = []
    gateway.state.observers.append(seen.append)
    await engine.stop()
    body = {"model": "tiny", "prompt": "x"}
    async with gateway.post("/v1/completions", json=body) as response:
        assert response.status == 503
    async with gateway.post("/v1/completions", json={"model": "nobody"}) as response:
        assert response.status == 404
    (one,) = seen
    assert (one.adapter, one.number, one.lane) == ("tiny", None, "base")
    assert one.outcome == "engine_unavailable"
    await engine.start()


async def test_an_observer_that_fails_costs_nobody_an_answer(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Observation) -> None:
        raise ValueError("not today")

    gateway.state.observers.append(broken)
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 200
        assert response.headers["x-adapterctl-lane"] == "hot"
        assert "x-adapterctl-route" not in response.headers
    assert "an observer failed" in caplog.text
    await gateway.settled("adapterctl_requests_in_flight", 0, adapter="pirate")
