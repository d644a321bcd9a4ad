"""An engine for the channel's tests: uvicorn with our connections, and what it may say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.responses import StreamingResponse

Talk = Callable[[bytes, Callable[[bytes], Awaitable[None]]], Awaitable[None]]


class Engine:
    """uvicorn with our connections, as in vLLM's API server; `talk` says the body."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.talk: Talk = echo
        self.hung_up = asyncio.Event()
        self.length: int | None = None
        # Answers instead, behind something that sees what is sent.
        self.response: StreamingResponse | None = None
        self.sent: list[bytes] = []

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        async def seen(message: Any) -> None:
            self.sent.append(message.get("body", b"head"))
            await send(message)

        if self.response is not None:
            await self.response(scope, receive, seen)
            return
        body = (await receive())["body"]
        length = [] if self.length is None else [(b"content-length", b"%d" % self.length)]
        await send({"type": "http.response.start", "status": 200, "headers": length})

        async def say(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        async def watch() -> None:
            assert (await receive())["type"] == "http.disconnect"
            self.hung_up.set()

        watching = asyncio.create_task(watch())
        await self.talk(body, say)
        watching.cancel()
        await send({"type": "http.response.body", "body": b""})


async def echo(body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
    for part in body.split(b" "):
        await say(part)
        await asyncio.sleep(0)


class Long:
    """Says `count` parts of `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._sent = 0

    async def __call__(self, body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
        for _ in range(self._count):
            await say(bytes(self._size))
            self._sent += 1
            await asyncio.sleep(0)

    async def stalled(self) -> int:
        """How many parts it had said when it had to wait."""
        before = -1
        while self._sent > before:
            before = self._sent
            await asyncio.sleep(0.2)
        return self._sent
