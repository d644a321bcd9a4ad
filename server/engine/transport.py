"""The one way to talk HTTP to an engine, over a unix socket or a URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiohttp

from adapters.errors import EngineError, EngineUnavailable

# Seconds that a connection is kept for the next request. vLLM's uvicorn closes one after five: what
# is sent at that moment is lost, and looks as if the engine had died of it.
KEPT_ALIVE = 2.5


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where an engine listens: `url` (the Host part is a formality on a unix socket)."""

    url: str
    socket: Path | None = None

    @classmethod
    def parse(cls, text: str) -> EngineAddress:
        """`http://host:port` or `unix:/path/to.sock`."""
        if text.startswith("unix:"):
            return cls(url="http://engine", socket=Path(text.removeprefix("unix:")))
        return cls(url=text.rstrip("/"))

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket is not None else self.url


class EngineTransport:
    """A pool of connections to one engine. Made inside the running event loop."""

    def __init__(self, address: EngineAddress, connect_timeout: float):
        self.address = address
        connector: aiohttp.BaseConnector
        # Unbounded: how many requests run at once is for admission to decide, not for a pool.
        if address.socket is not None:
            connector = aiohttp.UnixConnector(
                path=str(address.socket), limit=0, keepalive_timeout=KEPT_ALIVE
            )
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE)
        self._session = aiohttp.ClientSession(
            connector=connector,
            # An engine's cookies would go from one client's request to the next.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
            # The engine's bytes are passed on as they are.
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            read_bufsize=2**18,
        )
        self._answers: WeakSet[aiohttp.ClientResponse] = WeakSet()

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        # Closing the session alone leaves who reads an answer waiting for ever: aiohttp tells only
        # those that a connection is lost to, and this one it lets go of.
        for response in list(self._answers):
            response.close()
        await self._session.close()

    async def send(
        self, method: str, path: str, *, body: bytes | None, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request and return as soon as the answer's headers are there.

        Raises EngineUnavailable where nothing was sent (safe to try again), EngineError where
        the engine went away with the request.
        """
        try:
            response = await self._session.request(
                method, self.address.url + path, data=body, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
            raise EngineUnavailable(
                f"the engine at {self.address} cannot be reached: {error}", retry_after=2
            ) from error
        self._answers.add(response)
        return response

    async def get_json(self, path: str, *, timeout: float) -> Any:
        """GET a small JSON document; raises EngineError."""
        try:
            async with asyncio.timeout(timeout):
                response = await self.send("GET", path, body=None, headers={})
                async with response:
                    if response.status != 200:
                        raise EngineError(f"the engine answered {path} with {response.status}")
                    return await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise EngineError(f"the engine did not answer {path}: {error!r}") from error

    async def healthy(self, *, timeout: float) -> bool:
        """Whether the engine answers its health check."""
        try:
            async with asyncio.timeout(timeout):
                response = await self.send("GET", "/health", body=None, headers={})
                async with response:
                    return response.status == 200
        except (aiohttp.ClientError, EngineError, TimeoutError, OSError):
            return False
