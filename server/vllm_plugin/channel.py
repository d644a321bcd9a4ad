"""The engine's end of the channel (server/engine/channel.py): all streams in one write.

It is in vLLM's API server, whose uvicorn gets connections of ours. Requests that name no channel
are answered on their own connection, as ever. A streamed answer that goes through a channel does
not pass what four layers of the application wrap around `send` for every token: none looks at it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from server.connection import BodyWriter, Holding
from server.engine.channel import (
    CHANNEL_HEADER,
    CLOSED,
    GO_ON,
    NAME_BYTES,
    PAIR,
    WAIT,
    channel_socket,
)

_HEADER = CHANNEL_HEADER.encode()
# Bytes of a connection that are sent as one part: the gateway keeps a part until it is complete.
_PART = 1 << 16
# By its name.
_OPEN: dict[bytes, Channel] = {}
# In the scope of a request that is answered through a channel: its BodyWriter.
_WRITE = "adapterctl.channel"

_Content = str | bytes | memoryview
_Answering = Callable[[StreamingResponse, Scope, Receive, Send], Coroutine[Any, Any, None]]


def answer_through_channels() -> None:
    """Have the uvicorn that vLLM starts in this process make connections of ours."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{EngineConnection.__name__}"
    call = StreamingResponse.__call__
    if not hasattr(call, "__wrapped__"):
        StreamingResponse.__call__ = writing(call)  # type: ignore[method-assign,assignment]


def writing(call: _Answering) -> _Answering:
    """Have a streamed answer write its parts itself where the request names a channel."""

    @functools.wraps(call)
    async def answer(
        response: StreamingResponse, scope: Scope, receive: Receive, send: Send
    ) -> None:
        write = scope.get(_WRITE)
        # With a length it is in no chunks.
        if write is not None and "content-length" not in response.headers:
            response.body_iterator = _written(response.body_iterator, response.charset, write)
        await call(response, scope, receive, send)

    return answer


async def _written(
    parts: AsyncIterable[_Content], charset: str, write: BodyWriter
) -> AsyncIterator[bytes]:
    """Nothing, for `send`, which waits where the reader has enough, as it does for any part."""
    async for part in parts:
        data = part.encode(charset) if isinstance(part, str) else bytes(part)
        # No data would be the end of all chunks.
        if data and not write(data):
            yield b""


async def listen(http: Path) -> asyncio.Server:
    """Take channels beside the socket for HTTP, for as long as what is returned is kept."""
    path = channel_socket(http)
    path.unlink(missing_ok=True)
    return await asyncio.get_running_loop().create_unix_server(Channel, str(path))


class EngineConnection(Holding):
    """uvicorn's; what it writes goes through the channel that its last request named."""

    _channel: Channel | None = None
    _number = 0

    def on_headers_complete(self) -> None:
        for name, value in self.headers:
            if name == _HEADER:
                self._go_through(value)
                break
        super().on_headers_complete()
        if self._channel is not None:
            cast(dict[str, Any], self.scope)[_WRITE] = self.writer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._channel is not None:
            self._channel.leave(self._number)
        super().connection_lost(exc)

    def _go_through(self, named: bytes) -> None:
        name, _, number = named.partition(b" ")
        channel = _OPEN.get(name)
        # One that is not known here is another API server's: vLLM can start several on one socket.
        if channel is not None and channel is not self._channel:
            self._channel, self._number = channel, int(number)
            channel.enter(self._number, self)
            self.holder.through = functools.partial(channel.send, self._number)


class Channel(asyncio.Protocol):
    """One gateway's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._name = b""
        self._rest = b""
        self._connections: dict[int, EngineConnection] = {}
        # Of which the gateway has enough for now; and whether it reads nothing of any.
        self._waiting: set[int] = set()
        self._full = False
        self._held: list[bytes] = []

    def enter(self, number: int, connection: EngineConnection) -> None:
        """Its answers come through here from now on."""
        self._connections[number] = connection
        if self._full:
            connection.pause_writing()

    def leave(self, number: int) -> None:
        """It is closed: the gateway gets to know that all it had written is there."""
        if self._connections.pop(number, None) is not None:
            self._waiting.discard(number)
            self._put(PAIR.pack(number, 0))

    def send(self, number: int, data: bytes) -> None:
        """Send what is a connection's, together with all others' of this round of the event loop:
        the tasks of all streams that a step has a token for are ready at once."""
        if number not in self._connections:
            return
        for start in range(0, len(data), _PART):
            part = data[start : start + _PART]
            self._put(PAIR.pack(number, len(part)), part)

    def _put(self, *parts: bytes) -> None:
        if self._transport is None:
            return
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held += parts

    def _flush(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if self._transport is not None:
            self._transport.write(data)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        if not self._name:
            if len(data) < NAME_BYTES:
                self._rest = data
                return
            self._name, data = data[:NAME_BYTES], data[NAME_BYTES:]
            _OPEN[self._name] = self
            self._put(PAIR.pack(0, 0))
        whole = len(data) - len(data) % PAIR.size
        for number, word in PAIR.iter_unpack(data[:whole]):
            self._gateway_says(number, word)
        self._rest = data[whole:]

    def _gateway_says(self, number: int, word: int) -> None:
        connection = self._connections.get(number)
        if connection is None:
            if word == CLOSED:
                # It was closed before a request on it was read.
                self._put(PAIR.pack(number, 0))
        elif word == WAIT:
            self._waiting.add(number)
            connection.pause_writing()
        elif word == GO_ON:
            self._waiting.discard(number)
            if not self._full:
                connection.resume_writing()

    def pause_writing(self) -> None:
        self._full = True
        for connection in self._connections.values():
            connection.pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        for number, connection in self._connections.items():
            if number not in self._waiting:
                connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody gets their answers any more."""
        self._transport = None
        _OPEN.pop(self._name, None)
        for connection in list(self._connections.values()):
            connection.below.abort()
