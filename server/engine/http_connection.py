"""A connection to an engine, and the answer that is read from it.

The parser is httptools', as in uvicorn. Where the engine has a channel (server/engine/channel.py)
what it answers comes through that one, and is parsed here all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from server.engine.channel import CLOSED, GO_ON, WAIT, Channel

# Bytes of an answer that wait for their reader before the engine is made to wait.
_UNREAD = 2**18


class ConnectionBroken(ConnectionError):
    """The engine closed the connection, or said what is no HTTP, before the answer was complete."""


class Owner(Protocol):
    """Who keeps connections."""

    def opened(self, connection: Connection) -> None:
        """It is open."""

    def lost(self, connection: Connection) -> None:
        """It is closed."""

    def free(self, connection: Connection) -> None:
        """It can take another request."""


class Connection(asyncio.Protocol):
    """One connection; it has at most one request at a time."""

    def __init__(self, owner: Owner, number: int) -> None:
        """`number`: by which a channel tells it from others; above 0."""
        self._owner = owner
        self.number = number
        # Through which its answers come; and, once it is closed, why that is to be told as soon as
        # what came before has come through it.
        self._channel: Channel | None = None
        self._lost: tuple[Exception | None] | None = None
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        # Of the answer that is read: it tells that one what it finds.
        self.parser: Any = None
        # By time.monotonic(): when its last answer had ended.
        self.rests_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether it can take a request."""
        transport = self._transport
        return self._answer is None and transport is not None and not transport.is_closing()

    def send(self, request: bytes, channel: Channel | None = None) -> Answer:
        """Send a whole request, which names the channel; the answer has nothing yet."""
        assert self.usable and self._transport is not None
        if channel is not None and channel is not self._channel:
            self._channel = channel
            channel.listen(self.number, self)
        self._answer = answer = Answer(self)
        self.parser = httptools.HttpResponseParser(answer)
        self._transport.write(request)
        return answer

    def done(self, answer: Answer) -> None:
        """The answer is wanted no more. Where it was not read to its end the connection is closed,
        by which an engine knows that it need not go on; further calls change nothing."""
        if self._answer is not answer:
            return
        self._answer = self.parser = None
        if answer.at_end and answer.kept_alive and self.usable:
            self._owner.free(self)
        else:
            self.abort()

    def break_off(self, error: BaseException) -> None:
        """Close it; whoever reads an answer gets the error."""
        if self._answer is not None:
            self._answer.broken(error)
        self.abort()

    def abort(self) -> None:
        """Close it without another word."""
        if self._channel is not None:
            self._channel.forget(self.number)
            self._channel = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self, wait: bool) -> None:
        """Let the engine wait with the rest of the answer, or go on."""
        transport = self._transport
        if self._channel is not None:
            self._channel.tell(self.number, WAIT if wait else GO_ON)
        if transport is not None and not transport.is_closing():
            transport.pause_reading() if wait else transport.resume_reading()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.parser is None:
            self.abort()  # Nobody asked.
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # What whoever takes the answer raised is for its reader.
            self.break_off(error.__context__ or error)
        except httptools.HttpParserError as error:
            self.break_off(ConnectionBroken(f"the engine's answer is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.lost(self)
        self._lost = (exc,)
        if self._channel is None:
            self._end()
        else:
            self._channel.tell(self.number, CLOSED)

    def said_all(self) -> None:
        """Says the channel."""
        self._channel = None
        if self._lost is not None:
            self._end()
        else:
            # The engine has closed it, or the channel is lost: it is of no use any more.
            self.abort()

    def _end(self) -> None:
        assert self._lost is not None
        self.parser = None
        if self._answer is not None:
            self._answer.connection_lost(self._lost[0])


class Answer:
    """An answer: its status and headers (names in lower case), and its body as it arrives."""

    def __init__(self, connection: Connection):
        self.status = 0
        self.headers: dict[str, str] = {}
        # Whether the engine keeps the connection open after it.
        self.kept_alive = False
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._blocks: deque[bytes] = deque()
        self._unread = 0
        self._paused = False
        self._complete = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Who is given what arrives.
        self._taker: Callable[[bytes], bool] | None = None

    @property
    def content_type(self) -> str:
        """Without its parameters, in lower case; empty where the engine says none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def at_end(self) -> bool:
        """Whether all of it has been read."""
        return self._complete and not self._blocks

    def release(self) -> None:
        """It is wanted no more: its connection is used again, or closed where some of it is unread.
        Further calls change nothing."""
        self._connection.done(self)

    def close(self) -> None:
        """Close its connection, from whichever task: its reader gets ConnectionBroken."""
        self.broken(ConnectionBroken("the answer is wanted no more"))
        self._connection.done(self)

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    async def started(self) -> None:
        """Wait for status and headers. Raises ConnectionBroken."""
        while self.status < 200:
            await self._more()

    async def read_some(self) -> bytes:
        """What has arrived, at least a byte; empty at the end. Raises ConnectionBroken."""
        while not self._blocks:
            if self._complete:
                return b""
            await self._more()
        return self._rest()

    def _rest(self) -> bytes:
        data = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            self._connection.pause(False)
        return data

    async def hand_on(self, take: Callable[[bytes], bool]) -> None:
        """Call `take` with what arrives, right then, until it returns False or the body ends.

        A task that reads is woken for every part, which costs more than most of what it does with
        it. Raises ConnectionBroken, and what `take` raises.
        """
        if self._blocks and not take(self._rest()):
            return
        self._taker = take
        try:
            while self._taker is not None and not self._complete:
                await self._more()
        finally:
            self._taker = None

    async def read(self) -> bytes:
        """The rest of the body. Raises ConnectionBroken."""
        parts = []
        while part := await self.read_some():
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def text(self) -> str:
        """The rest of the body as UTF-8. Raises ConnectionBroken."""
        return (await self.read()).decode("utf-8", errors="replace")

    async def json(self) -> Any:
        """The body as JSON. Raises ValueError, ConnectionBroken."""
        return json.loads(await self.read())

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._waiter is None, "an answer has one reader"
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        parser = self._connection.parser
        self.status = parser.get_status_code()
        self.kept_alive = parser.should_keep_alive()
        if self.status < 200:
            self.headers.clear()  # It announces another one.
        else:
            self._wake()

    def on_body(self, data: bytes) -> None:
        if self._taker is not None:
            if self._taker(data):
                return
            self._taker = None
        else:
            self._blocks.append(data)
            self._unread += len(data)
            if self._unread > _UNREAD and not self._paused:
                self._paused = True
                self._connection.pause(True)
        self._wake()

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._end()

    def _end(self) -> None:
        self._complete = True
        self._wake()

    # What the connection says.

    def broken(self, error: BaseException) -> None:
        """There will not be more of it."""
        if not self._complete and self._error is None:
            self._error = error
        self._wake()

    def connection_lost(self, reason: Exception | None) -> None:
        """It is closed: the end of an answer that gave no length, too soon for any other."""
        if self._delimited or self.status < 200 or reason is not None:
            error = ConnectionBroken("the engine closed the connection before its answer's end")
            error.__cause__ = reason
            self.broken(error)
        else:
            self._end()

    @property
    def _delimited(self) -> bool:
        return "content-length" in self.headers or "transfer-encoding" in self.headers
