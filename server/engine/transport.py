"""The one way to talk HTTP to an engine, over a unix socket or a URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import EngineError, EngineUnavailable
from server.engine.endpoint import Endpoint
from server.engine.http_client import Client
from server.engine.http_connection import Answer

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
        endpoint = Endpoint.of(address.url, address.socket)
        # Unbounded: how many requests run at once is for admission to decide, not for a pool.
        self._client = Client(endpoint, connect_timeout, KEPT_ALIVE)

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        self._client.close()

    async def send(
        self, method: str, path: str, *, body: bytes | None, headers: dict[str, str]
    ) -> Answer:
        """Send a request and return as soon as the answer's headers are there.

        Raises EngineUnavailable where nothing was sent (safe to try again), ConnectionBroken
        where the engine went away with the request.
        """
        try:
            connection = await self._client.connection()
        except OSError as error:
            raise EngineUnavailable(
                f"the engine at {self.address} cannot be reached: {error}", retry_after=2
            ) from error
        return await self._client.ask(connection, method, path, headers, body)

    async def get_json(self, path: str, *, timeout: float) -> Any:
        """GET a small JSON document; raises EngineError."""
        try:
            async with asyncio.timeout(timeout):
                response = await self.send("GET", path, body=None, headers={})
                async with response:
                    if response.status != 200:
                        raise EngineError(f"the engine answered {path} with {response.status}")
                    return await response.json()
        except (TimeoutError, ValueError, OSError) as error:
            raise EngineError(f"the engine did not answer {path}: {error!r}") from error

    async def healthy(self, *, timeout: float) -> bool:
        """Whether the engine answers its health check."""
        try:
            async with asyncio.timeout(timeout):
                response = await self.send("GET", "/health", body=None, headers={})
                async with response:
                    return response.status == 200
        except (EngineError, TimeoutError, OSError):
            return False
