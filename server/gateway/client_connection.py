"""A client's connection: what it may send, and in what time.

uvicorn bounds neither the headers of a request nor the time in which it arrives, so that anybody
could fill the memory or hold connections. A refusal before there is a request for the application
has the shape of every other one, and ends the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, cast

from adapters.errors import AdapterctlError, HeadersTooLarge, InvalidRequest, RequestTimeout
from server.connection import Connection
from server.gateway.request_ids import new_request_id
from server.gateway.request_notes import SERVER_WRITE
from server.gateway.stopping import Stopping

log = logging.getLogger(__name__)

# Bytes a second below which a body counts as not arriving (as in Apache's mod_reqtimeout).
SLOWEST = 500
# The most that is read at once: what is read with the head's end may be the body.
_READ = 256 * 1024
# The application's log line is to say what the client was told, not that it hung up.
REFUSED = "adapterctl.refused"


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bytes and number of a request's headers, and seconds; the settings have the meanings."""

    header_bytes: int = 64 * 1024
    headers: int = 100
    header_timeout: float = 15
    body_timeout: float = 30
    keep_alive: float = 75
    write_timeout: float = 60


@dataclass(slots=True)
class ConnectionRules:
    """What every connection goes by: `limits` are replaced when the settings are read again."""

    limits: ClientLimits = field(default_factory=ClientLimits)
    stopping: Stopping = field(default_factory=Stopping)


class ClientConnection(Connection):
    """uvicorn's, within limits."""

    rules = ConnectionRules()

    @classmethod
    def under(cls, rules: ConnectionRules) -> type[ClientConnection]:
        """As this class, under these rules; uvicorn makes the connections itself."""
        return type("ClientConnection", (cls,), {"rules": rules})

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.write_timeout = self.rules.limits.write_timeout
        self.timeout_keep_alive = self.rules.limits.keep_alive  # type: ignore[assignment]
        # Of the request that arrives: its head is incomplete, its bytes so far, why it is refused.
        self._in_head = False
        self._head_bytes = self._raw_head = 0
        self._body_bytes = 0
        self._refusal: AdapterctlError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # As long as one between two requests may do nothing.
        self._set_timer(self.rules.limits.keep_alive, self._nothing_came)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        arriving = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            self._unset_timer()
        elif self._in_head:
            self._head_arrives(len(data), first=not arriving)
        elif self._incomplete():
            if self._timer is None:
                self._body_bytes = 0
                self._set_timer(self.rules.limits.body_timeout, self._body_too_slow)
        else:
            self._unset_timer()
            if self.cycle is None or self.cycle.response_complete:
                self._wait_for_next()

    def _head_arrives(self, size: int, *, first: bool) -> None:
        # The parser says nothing of a header before its end, and keeps it.
        self._raw_head += size
        limits = self.rules.limits
        if self._raw_head > limits.header_bytes + _READ:
            self._refuse(_too_much(limits))
        elif first:
            self._set_timer(limits.header_timeout, self._head_too_slow)

    def _incomplete(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _wait_for_next(self) -> None:
        """Bytes that are no request (an empty line) must not stop the clock of an idle one."""
        if self.timeout_keep_alive_task is None:
            seconds = self.timeout_keep_alive
            again = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = again

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._raw_head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        self._check_head(self._head_bytes + len(self.url))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._unset_timer()
        super().on_headers_complete()
        cast(dict[str, Any], self.scope)[SERVER_WRITE] = self.writer()
        if self.rules.stopping.begun or self._leaving:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._timer is not None:
            self._unset_timer()
        super().on_message_complete()

    def shutdown(self) -> None:
        """A request that is just arriving is still answered."""
        self._leaving = True
        if not self._in_head:
            super().shutdown()

    # Limits.

    def _check_head(self, size: int) -> None:
        limits = self.rules.limits
        if size > limits.header_bytes:
            self._refusal = _too_much(limits)
        elif len(self.headers) > limits.headers:
            sentence = f"the request has more than {limits.headers} headers"
            self._refusal = HeadersTooLarge(sentence)
        else:
            return
        raise self._refusal  # Through the parser, which then stops reading.

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or too much of it."""
        self._refuse(self._refusal or InvalidRequest("this is no valid HTTP request"))

    def _refuse(self, error: AdapterctlError) -> None:
        """Answer what arrives and hang up; where an earlier request is being answered, after it."""
        self._unset_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False
                self.flow.pause_reading()
                return
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
            cast(dict[str, Any], cycle.scope)[REFUSED] = error
        self.transport.write(_refusal(error, self.server_state.default_headers))
        log.info("refused before it was a request: %s", error.message)
        self.transport.close()

    # Time.

    def _set_timer(self, seconds: float, ended: Any) -> None:
        self._unset_timer()
        self._timer = self.loop.call_later(seconds, ended)

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _nothing_came(self) -> None:
        self.transport.close()

    def _head_too_slow(self) -> None:
        seconds = self.rules.limits.header_timeout
        self._refuse(RequestTimeout(f"the request's headers did not arrive within {seconds:g} s"))

    def _body_too_slow(self) -> None:
        self._timer = None
        if not self._incomplete():
            return
        if self.cycle.response_complete:
            # Answered already, and that the body is not wanted.
            self.transport.close()
            return
        seconds = self.rules.limits.body_timeout
        # Where the server itself does not read on, the client is not the one who is slow.
        if self.flow.read_paused or self._body_bytes >= SLOWEST * seconds:
            self._body_bytes = 0
            self._set_timer(seconds, self._body_too_slow)
            return
        self._refuse(RequestTimeout(f"too little of the body arrived within {seconds:g} s"))


def _too_much(limits: ClientLimits) -> HeadersTooLarge:
    return HeadersTooLarge(f"the request's line and headers exceed {limits.header_bytes} bytes")


def _refusal(error: AdapterctlError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    body = json.dumps(error.body(), separators=(",", ":")).encode()
    status = HTTPStatus(error.http_status)
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", new_request_id().encode()),
    ]
    lines = [b"HTTP/1.1 %d %s" % (status.value, status.phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", body])
