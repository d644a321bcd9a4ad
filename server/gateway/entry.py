"""Around every request: its id in and out, browsers' rules, the server's end, a line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import AdapterctlError
from server.gateway.client_connection import REFUSED
from server.gateway.errors import error_response
from server.gateway.logs import REQUEST_ID
from server.gateway.request_ids import HEADER, request_id
from server.gateway.request_notes import NOTES, SERVER_SEND, Notes
from server.gateway.stopping import Stopping, cut_off
from server.gateway.tracing import Tracing

# Names what is logged of a request, whatever module is asked for it.
request_log = logging.getLogger("server.request")


_HEADER = HEADER.encode()
# Asked every few seconds by machines.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
# What pages of other sites may read of an answer.
_EXPOSED = (
    HEADER,
    "retry-after",
    "x-adapterctl-digest",
    "x-adapterctl-version",
    "x-adapterctl-lane",
    "x-adapterctl-queued",
    "x-adapterctl-route",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


class Entry:
    """The outermost part of the application."""

    def __init__(
        self,
        app: ASGIApp,
        stopping: Stopping,
        *,
        origins: tuple[str, ...] = (),
        tracing: Tracing | None = None,
    ):
        """`origins`: sites whose pages may use it from a browser. `tracing` None: no spans."""
        self._stopping = stopping
        self._tracing = tracing
        self._app = app
        if origins:
            self._app = CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
                allow_headers=("*",),
                expose_headers=_EXPOSED,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        notes = Notes(request_id(_said(scope)))
        scope[NOTES] = notes
        # Events of a stream need not go through every middleware's `send`.
        scope[SERVER_SEND] = send
        REQUEST_ID.set(notes.request_id)
        if self._tracing is not None and scope["path"] not in _QUIET:
            notes.span = self._tracing.begin(scope["method"], Headers(scope=scope))
        own = (_HEADER, notes.request_id.encode())

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes.status = message["status"]
                message["headers"] = [*message.get("headers", ()), own]
            await send(message)

        try:
            await self._answered(scope, receive, sending, notes)
        finally:
            _tell(scope, notes, time.monotonic() - began)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, notes: Notes) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._stopping.cut or notes.status is not None:
                raise
            error = cut_off()
            notes.outcome = error.code
            await error_response(error)(scope, receive, send)
        except Exception:
            # The client has its answer, and the log the reason, from the application's handler.
            if notes.status is None:
                raise


def _said(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == _HEADER:
            text: str = value.decode("latin-1")
            return text
    return None


def _tell(scope: Scope, notes: Notes, seconds: float) -> None:
    """The log, and who follows traces."""
    level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
    logged = request_log.isEnabledFor(level)
    if not logged and notes.span is None:
        return
    fields = _fields(scope, notes, seconds)
    if logged:
        request_log.log(level, "request", extra={"fields": fields})
    if notes.span is not None:
        route = getattr(scope.get("route"), "path", None)
        notes.span.end(route, {**fields, "request_id": notes.request_id})


def _fields(scope: Scope, notes: Notes, seconds: float) -> dict[str, Any]:
    refused: AdapterctlError | None = scope.get(REFUSED)
    status = notes.status if refused is None else refused.http_status
    fields: dict[str, Any] = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
    }
    if scope.get("client"):
        fields["client"] = scope["client"][0]
    if notes.exchange is not None:
        fields.update(notes.exchange.logged())
    if refused is not None:
        fields["outcome"] = refused.code
    elif notes.outcome is not None:
        fields["outcome"] = notes.outcome
    elif "outcome" not in fields:
        fields["outcome"] = "ok" if status is not None and status < 400 else "failed"
    return fields
