"""HTTP/1.1 to an engine, as lean as its protocol: its connections, and requests on them.

A client library (aiohttp) made a quarter of what the gateway costs a request (ADR 29): sessions,
cookies, redirects, encodings and proxies, none of which exists between a gateway and its engine.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from pathlib import Path

from server.engine.channel import CHANNEL_HEADER, Channel
from server.engine.endpoint import Endpoint
from server.engine.http_connection import Answer, Connection, ConnectionBroken


class Client:
    """Connections to one endpoint, kept open between requests."""

    def __init__(self, endpoint: Endpoint, connect_timeout: float, kept_alive: float):
        """`kept_alive`: seconds that a connection may have rested and still gets a request."""
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._kept_alive = kept_alive
        self._all: set[Connection] = set()
        # The one that has rested longest first.
        self._resting: deque[Connection] = deque()
        self._closed = False
        self._numbers = itertools.count(1)
        self._channel: Channel | None = None
        self._opening: asyncio.Task[None] | None = None

    async def connection(self) -> Connection:
        """One that can take a request. Raises OSError, TimeoutError among them."""
        if self._closed:
            raise ConnectionBroken("the connections to the engine are closed")
        self._let_go()
        while self._resting:
            # The one used last: the others may then rest until they are closed.
            resting = self._resting.pop()
            if resting.usable:
                return resting
        return await self._connect()

    async def _connect(self) -> Connection:
        loop, to = asyncio.get_running_loop(), self._endpoint

        def make() -> Connection:
            return Connection(self, next(self._numbers))

        async with asyncio.timeout(self._connect_timeout):
            if to.socket is not None:
                _, made = await loop.create_unix_connection(make, str(to.socket))
            else:
                _, made = await loop.create_connection(make, to.host, to.port, ssl=to.tls)
        if self._closed:
            made.abort()
            raise ConnectionBroken("the connections to the engine are closed")
        return made

    async def ask(
        self,
        connection: Connection,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> Answer:
        """Send a request; the answer as far as its headers. Raises ConnectionBroken, and
        ValueError for what would not be a request, with the connection as it was."""
        # What is asked without a body is asked of an engine that is just starting, too.
        channel = None if body is None else self._through()
        if channel is not None:
            headers = {**headers, CHANNEL_HEADER: f"{channel.name} {connection.number}"}
        try:
            request = self._endpoint.request(method, path, headers, body)
        except ValueError:
            self.free(connection)
            raise
        answer = connection.send(request, channel)
        try:
            await answer.started()
        except BaseException:
            answer.release()
            raise
        return answer

    def _through(self) -> Channel | None:
        """The channel, where the engine has one. Requests do not wait until it is open."""
        socket = self._endpoint.socket
        if self._opening is None and socket is not None:
            self._opening = asyncio.create_task(self._open_channel(socket))
        channel = self._channel
        return channel if channel is not None and channel.is_open else None

    async def _open_channel(self, socket: Path) -> None:
        self._channel = await Channel.to(socket)
        if self._closed and self._channel is not None:
            self._channel.close()

    def close(self) -> None:
        """Close every connection; whoever reads an answer gets ConnectionBroken."""
        self._closed = True
        for connection in list(self._all):
            connection.break_off(ConnectionBroken("the connections to the engine were closed"))
        if self._channel is not None:
            self._channel.close()

    def opened(self, connection: Connection) -> None:
        """Says a connection."""
        self._all.add(connection)

    def lost(self, connection: Connection) -> None:
        """Says a connection."""
        self._all.discard(connection)

    def free(self, connection: Connection) -> None:
        """Says a connection that can take another request."""
        connection.rests_since = time.monotonic()
        self._resting.append(connection)
        self._let_go()

    def _let_go(self) -> None:
        oldest = time.monotonic() - self._kept_alive
        while self._resting and self._resting[0].rests_since <= oldest:
            self._resting.popleft().abort()
