"""The lean client, over a real socket: what it counts, and that nothing half-answered counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapters.errors import ToolFailed
from loadtests.compare.asking import Asker
from tests.server.gateway.scripted import DONE, Handler, ScriptedEngine


def _stream(given: int | None = None, delay: float = 0.0) -> Handler:
    """As vLLM streams completions: an event a token, then one with the usage."""

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(delay)
        tokens = document["max_tokens"] if given is None else given
        for _ in range(tokens):
            event = {"choices": [{"text": "a"}], "usage": None}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0.002)
        usage = {"choices": [], "usage": {"completion_tokens": tokens}}
        await response.write(b"data: " + json.dumps(usage).encode() + b"\n\n" + DONE)
        return response

    return handler


@asynccontextmanager
async def _asking(tmp_path: Path, handler: Handler) -> AsyncIterator[tuple[ScriptedEngine, Asker]]:
    engine = ScriptedEngine(tmp_path / "engine.sock", handler)
    await engine.start()
    try:
        async with Asker("the engine", str(engine.socket)) as asker:
            yield engine, asker
    finally:
        await engine.stop()


async def test_first_token_comes_before_the_end(tmp_path: Path) -> None:
    async with _asking(tmp_path, _stream(delay=0.05)) as (_, asker):
        answered = await asker.ask("m", [1, 2], 20)
    assert answered.tokens == 20
    assert 0.05 <= answered.first < answered.total


async def test_requests_go_at_once_with_prompts_of_their_own(tmp_path: Path) -> None:
    arrived = 0
    everybody = asyncio.Event()
    stream = _stream()

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 4:
            everybody.set()
        # Answered only when all are there: one after the other would never end.
        await asyncio.wait_for(everybody.wait(), 5)
        return await stream(request, document)

    async with _asking(tmp_path, handler) as (engine, asker):
        seconds = await asker.first_token(["a", "b", "a", "b"], 64, "seed")
        arrived = 0
        await asker.first_token(["a"] * 4, 64, "other seed")
    assert seconds > 0
    assert sorted(body["model"] for body in engine.received[:4]) == ["a", "a", "b", "b"]
    prompts = [tuple(body["prompt"]) for body in engine.received]
    assert {len(prompt) for prompt in prompts} == {64}
    assert len(set(prompts)) == 8


async def test_rate_is_of_all_streams(tmp_path: Path) -> None:
    async with _asking(tmp_path, _stream()) as (_, asker):
        alone = await asker.decode(["a"], 4, 50, "one")
        together = await asker.decode(["a"] * 4, 4, 50, "four")
    # The scripted engine is as fast for each of four as for one.
    assert together > 1.5 * alone


@pytest.mark.parametrize("given", [0, 3])
async def test_answer_that_ends_early_is_no_figure(tmp_path: Path, given: int) -> None:
    async with _asking(tmp_path, _stream(given)) as (_, asker):
        with pytest.raises(ToolFailed, match=f"gave {given} of 8 tokens"):
            await asker.decode(["a"], 4, 8, "seed")


async def test_refusal_and_break_off_are_told(tmp_path: Path) -> None:
    async def refuses(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "no such model"}, status=404)

    async def breaks(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    for handler, told in ((refuses, "404 for a: .*no such model"), (breaks, "broke off for a")):
        folder = tmp_path / told[:3]
        folder.mkdir()
        async with _asking(folder, handler) as (_, asker):
            with pytest.raises(ToolFailed, match=told):
                await asker.first_token(["a"], 4, "seed")
