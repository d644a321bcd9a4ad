"""A client's connection: what is written at the same time leaves together.

uvicorn writes the status and headers by themselves, so that every answer costs the server one more
system call and its client one more wake-up, for a packet with which it can do nothing yet. That
holds for the gateway, and for the engine (server/vllm_plugin/channel.py), whose client is the
gateway.

A client of the gateway that does not take its answer is cut off after a while: until then it holds
a place at the engine, which makes tokens for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# Bytes that are written at once: whoever writes without waiting must come to see a full buffer.
_HELD = 1 << 16


class Holding(HttpToolsProtocol):
    """uvicorn's, on a transport that holds what is written."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, but do the same.
        self.below = cast(asyncio.Transport, transport)
        self.holder = Holder(self.below, self.loop)
        super().connection_made(self.holder)

    def writer(self) -> BodyWriter:
        """For the answer to the request whose head has just arrived."""
        return BodyWriter(self.cycle, self.holder)


class Connection(Holding):
    """The gateway's: a client that does not take its answer is cut off."""

    # Seconds that the buffer of a client may stay full (64 KiB besides the kernel's own).
    write_timeout = 60.0
    _stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.write_timeout, self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._moves()

    def connection_lost(self, exc: Exception | None) -> None:
        self._moves()
        super().connection_lost(exc)

    def _moves(self) -> None:
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            stalled.cancel()

    def _cut_off(self) -> None:
        """Whoever waits to write to it sees a client that went away."""
        self.transport.abort()


class BodyWriter:
    """Writes parts of an answer's body, in chunks as uvicorn does, without awaiting anything.

    For one request, once the head of its answer has been sent without a length.
    """

    def __init__(self, cycle: RequestResponseCycle, holder: Holder):
        self._cycle = cycle
        self._holder = holder

    def __call__(self, part: bytes) -> bool:
        """Write it; False: the client has to read first, or has gone, as `send` will say."""
        cycle = self._cycle
        if cycle.disconnected:
            return False
        assert cycle.chunked_encoding and not cycle.response_complete
        self._holder.write_now(b"%x\r\n%b\r\n" % (len(part), part))
        return not cycle.flow.write_paused


class Holder(asyncio.Transport):
    """The transport, but what is written is held until the event loop has run what was ready. As
    much of a transport as uvicorn uses."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        super().__init__()
        self._transport = transport
        self._loop = loop
        self.holds: list[bytes] = []
        self._size = 0
        # Where it goes instead.
        self.through: Callable[[bytes], None] | None = None

    def write(self, data: Any) -> None:
        if self.through is not None:
            self.through(data)
            return
        held = self.holds
        if not held:
            self._loop.call_soon(self.flush)
        held.append(data)
        self._size += len(data)
        if self._size > _HELD:
            self.flush()

    def write_now(self, data: bytes) -> None:
        """Write what comes by itself, as events do: there is nothing to hold it for."""
        if self.through is not None:
            self.through(data)
            return
        if self.holds:
            self.flush()
        self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._forget()
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.flush()
        self._transport.set_protocol(protocol)

    def flush(self) -> None:
        held = self.holds
        if not held:
            return
        data = held[0] if len(held) == 1 else b"".join(held)
        self._forget()
        if not self._transport.is_closing():
            self._transport.write(data)

    def _forget(self) -> None:
        self.holds.clear()
        self._size = 0
