"""Connections to an engine: used again, but not when it may be closing them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

import server.engine.transport as transport_module
from server.engine.http_connection import ConnectionBroken
from server.engine.transport import EngineAddress, EngineTransport


class Counting:
    """An engine that knows how many connections it was asked over."""

    def __init__(self) -> None:
        self.connections: set[int] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(id(request.transport))
        if request.path == "/stream":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"a part")
            await asyncio.sleep(60)
        return web.Response()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Counting]:
    counting = Counting()
    app = web.Application()
    app.router.add_get("/{tail:.*}", counting.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "e.sock")).start()
    yield counting
    await runner.cleanup()


async def ask(transport: EngineTransport) -> None:
    async with await transport.send("GET", "/", body=None, headers={}) as response:
        await response.read()


@pytest.mark.parametrize(("kept", "connections"), [(60.0, 1), (0.0, 2)])
async def test_a_connection_that_has_rested_is_not_used_again(
    engine: Counting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: float,
    connections: int,
) -> None:
    monkeypatch.setattr(transport_module, "KEPT_ALIVE", kept)
    transport = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
    await ask(transport)
    # The event loop's clock has to move on.
    await asyncio.sleep(0.01)
    await ask(transport)
    assert len(engine.connections) == connections
    await transport.close()


def test_uvicorn_waits_longer_than_we_use_its_connections() -> None:
    import inspect

    import uvicorn

    theirs = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert theirs - 1 > transport_module.KEPT_ALIVE


async def test_closing_wakes_who_reads(engine: Counting, tmp_path: Path) -> None:
    transport = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
    response = await transport.send("GET", "/stream", body=None, headers={})
    assert await response.read_some() == b"a part"
    reading = asyncio.create_task(response.read_some())
    await asyncio.sleep(0)
    await transport.close()
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionBroken):
            await reading
