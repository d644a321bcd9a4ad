"""A real `adapterctl serve` as a process of its own, on a tiny store, in front of a scripted engine
on a unix socket: what it takes and what it survives can be seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
from aiohttp import web

from loadtests.live import LiveServer
from tests.server.gateway.scripted import ScriptedEngine

PATH = "/v1/chat/completions"
CHAT = {"model": "bot:prod", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class Served:
    """The server, its engine, and a client of it."""

    live: LiveServer
    engine: ScriptedEngine
    client: aiohttp.ClientSession

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.live.pid)

    @property
    def memory(self) -> int:
        """Bytes that the server's process has in memory."""
        return int(self.process.memory_info().rss)

    async def ask(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Status and document of a whole answer."""
        async with self.client.post(self.live.url + PATH, json={**CHAT, **changes}) as response:
            return response.status, await response.json()

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        async with self.client.get(self.live.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} "))
        )

    async def until(self, name: str, expected: float, seconds: float = 15) -> None:
        """Wait for a metric."""
        async with asyncio.timeout(seconds):
            while await self.metric(name) != expected:
                await asyncio.sleep(0.05)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection."""
        address = urlsplit(self.live.url)
        return await asyncio.open_connection(address.hostname, address.port, limit=1 << 12)


class TinyEngine(ScriptedEngine):
    """It serves the base of tiny_store, and has no routes of ours."""

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/adapterctl/"):
            return web.Response(status=404)
        return await super()._post(request)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})


@contextlib.asynccontextmanager
async def engine_at(socket: Path) -> AsyncIterator[ScriptedEngine]:
    engine = TinyEngine(socket)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@contextlib.asynccontextmanager
async def served(
    store: Path, engine: ScriptedEngine, *arguments: str, log: Path
) -> AsyncIterator[Served]:
    """`adapterctl serve` on the store until the end of the block; it must then stop in order."""
    live = LiveServer(
        store,
        *("--base", "tiny", "--port", "0", "--engine-url", f"unix:{engine.socket}"),
        *arguments,
        log=log,
    )
    await asyncio.to_thread(live.start)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as client:
            yield Served(live, engine, client)
    except BaseException:
        live.kill()
        raise
    assert await asyncio.to_thread(live.stop) == 0, f"see {log}"


def allow_files(count: int) -> bool:
    """Whether this process may have so many open files; raises its limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, hard), hard))
    return True
