"""One socket for what an engine says to all requests at once.

At the end of a step an engine has a token for every stream. As HTTP it writes each into a socket of
its own, and the gateway is woken for, and reads, each by itself: on cores on which the engine
computes that is most of what a gateway costs. So the gateway opens one more socket beside the one
for HTTP, and an engine with our plugin sends there, in a single write, what it would have written
into the connections. A connection's requests, and how it is closed, stay on the connection.

The gateway says first its channel's name, and with every request (CHANNEL_HEADER) that name and the
number of the request's connection. Then, in both directions, pairs of two unsigned integers of 4
bytes, little-endian, the first of them a connection's number:

- from the engine: how many bytes of the connection follow; 0: it says no more (of the number 0,
  which no connection has: that it knows the channel, which may be named from then on);
- to the engine: to wait with the rest (WAIT) or to go on (GO_ON); or that the connection is closed
  here (CLOSED), upon which it says 0, if not now then when it sees that itself.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from pathlib import Path
from typing import Protocol, cast

CHANNEL_HEADER = "x-adapterctl-channel"
NAME_BYTES = 16
PAIR = struct.Struct("<II")
GO_ON, WAIT, CLOSED = range(3)


def channel_socket(http: Path) -> Path:
    """Beside the engine's socket for HTTP."""
    return http.with_name(http.name + ".channel")


class Listener(Protocol):
    """A connection whose bytes come through a channel."""

    def data_received(self, data: bytes) -> None:
        """As if the connection had them."""

    def said_all(self) -> None:
        """There will be no more."""


class Channel(asyncio.Protocol):
    """The gateway's end."""

    def __init__(self) -> None:
        self.name = secrets.token_hex(NAME_BYTES // 2)
        self._transport: asyncio.Transport | None = None
        self._known = False
        self._listeners: dict[int, Listener] = {}
        self._rest = b""

    @classmethod
    async def to(cls, socket: Path) -> Channel | None:
        """To the engine that has `socket` for HTTP; None where it has no channel."""
        loop = asyncio.get_running_loop()
        try:
            _, channel = await loop.create_unix_connection(cls, str(channel_socket(socket)))
        except OSError:
            return None
        return channel

    @property
    def is_open(self) -> bool:
        """Whether it can be named in a request."""
        transport = self._transport
        return self._known and transport is not None and not transport.is_closing()

    def listen(self, number: int, listener: Listener) -> None:
        """What connection `number` gets is for `listener`, from now on."""
        self._listeners[number] = listener

    def forget(self, number: int) -> None:
        """What it still gets is for nobody."""
        self._listeners.pop(number, None)

    def tell(self, number: int, word: int) -> None:
        """Tell the engine of a connection: GO_ON, WAIT or CLOSED."""
        if self._transport is not None:
            self._transport.write(PAIR.pack(number, word))

    def close(self) -> None:
        """Whoever listens is told that there will be no more."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self.name.encode())

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        listeners, unpack = self._listeners, PAIR.unpack_from
        while end - at >= PAIR.size:
            number, size = unpack(data, at)
            start = at + PAIR.size
            if end - start < size:
                break
            at = start + size
            listener = listeners.get(number)
            if listener is None:
                self._known = self._known or number == 0
            elif size:
                listener.data_received(data[start:at])
            else:
                self.forget(number)
                listener.said_all()
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        listeners, self._listeners = self._listeners, {}
        for listener in listeners.values():
            listener.said_all()
