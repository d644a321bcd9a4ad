"""The relay when the engine dies or hangs, or the client goes: what each becomes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, chunk, sse


async def _die(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


async def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_frame(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [chunk("a")])
        await asyncio.sleep(0.05)
        await _die(request)
        return response

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        body = await response.read()
    first, frame, rest = body.split(b"\n\n")
    assert first + b"\n\n" == chunk("a", "pirate:prod")
    assert rest == b""
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "engine_died"
    await gateway.settled("adapterctl_requests_in_flight", 0, adapter="pirate")


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_engine_that_dies_before_it_answers_is_a_502(
    gateway: Gateway, engine: ScriptedEngine, streaming: bool
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        await _die(request)
        return web.Response()

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": streaming}) as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "engine_died"


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_hangs_up_aborts_the_generation(
    gateway: Gateway, engine: ScriptedEngine, streaming: bool
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if streaming:
            response = await sse(request, [chunk("a")])
            await asyncio.sleep(30)
            return response
        await asyncio.sleep(30)
        return web.Response()

    engine.handler = handler
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            async with gateway.post(
                "/v1/chat/completions", json={**CHAT, "stream": streaming}
            ) as response:
                await response.read()
    async with asyncio.timeout(3):
        await engine.aborted.wait()
    await gateway.settled(
        "adapterctl_requests_total",
        1,
        adapter="pirate",
        lane="hot",
        route="/v1/chat/completions",
        outcome="client_gone",
    )
    assert gateway.metric("adapterctl_requests_in_flight", adapter="pirate") == 0


async def test_a_first_token_that_does_not_come_is_a_504_and_aborts(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [])
        await asyncio.sleep(30)
        return response

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "engine_timeout"
    async with asyncio.timeout(3):
        await engine.aborted.wait()


async def test_a_stream_that_does_not_end_in_time_ends_with_an_error_frame(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return await sse_slowly(request)

    async def sse_slowly(request: web.Request) -> web.StreamResponse:
        response = await sse(request, [])
        for _ in range(100):
            await response.write(chunk("x"))
            await asyncio.sleep(0.1)
        return response

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        events = (await response.read()).strip().split(b"\n\n")
    assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "engine_timeout"
    async with asyncio.timeout(3):
        await engine.aborted.wait()


async def test_an_engine_whose_core_is_dead_is_a_503_that_says_when_to_come_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        error = {"message": message, "type": "InternalServerError", "code": 500}
        return web.json_response({"error": error}, status=500)

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert (await response.json())["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_core_that_dies_in_a_stream_is_said_in_our_words(
    gateway: Gateway, engine: ScriptedEngine, begun: bool
) -> None:
    """vLLM's API server ends the stream with an event of its own."""
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    said = b"data: " + json.dumps({"error": {"message": message, "code": 500}}).encode() + b"\n\n"

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return await sse(request, [*([chunk("a")] if begun else []), said, b"data: [DONE]\n\n"])

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        body = await response.read()
    assert response.status == (200 if begun else 502)
    events = body.strip().removeprefix(chunk("a", "pirate:prod"))
    assert json.loads(events.removeprefix(b"data: "))["error"]["code"] == "engine_died"
    # Nobody else is sent there.
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
