"""An engine that answers when it is told to: who waits meanwhile can be looked at."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from tests.server.gateway.scripted import ScriptedEngine


class Held:
    """An engine that answers when it is told to, the first one first; notes what it has at once."""

    def __init__(self, engine: ScriptedEngine, *, read: int = 7, written: int = 4):
        """It says that it has read and written so many tokens."""
        total = read + written
        self._usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": total}
        self.models: list[str] = []
        self._go: asyncio.Queue[None] = asyncio.Queue()
        engine.handler = self._answer

    async def _answer(self, request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        self.models.append(document["model"])
        await self._go.get()
        return web.json_response(
            {
                "model": document["model"],
                "choices": [{"message": {"content": "arr"}}],
                "usage": self._usage,
            }
        )

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self._go.put_nowait(None)

    async def has(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.models) < count:
                await asyncio.sleep(0.005)
