"""uvicorn's server with an end of its own: nobody who was let in is turned away.

1. Told to stop: /readyz says 503, answers close their connections; connections are still taken for
   `delay` seconds, for a balancer needs a moment to see it.
2. The port is let go. Connections without a request are kept `linger` seconds longer: what their
   clients are just sending is answered.
3. Requests get `timeout` seconds; what is not finished then ends with an error that says so.
4. The application ends, and with it the engines. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

from server.gateway.client_connection import ClientConnection, ClientLimits, ConnectionRules
from server.gateway.service_manager import STOPPING, notify
from server.gateway.stopping import Stopping
from server.gateway.tls import Tls
from server.settings import ServeSettings

log = logging.getLogger(__name__)

# Seconds for what a client is sending at the moment when the port is let go.
LINGER = 0.2
# The same after a hand-over, where nobody waits for this server's end.
HANDOVER_LINGER = 5.0
# Seconds that requests get to say that they were cut off.
_LAST_WORDS = 2.0
_LOOK_AGAIN = 0.02


def client_limits(settings: ServeSettings) -> ClientLimits:
    """What a connection may send, in what time."""
    return ClientLimits(
        header_bytes=settings.max_header_bytes,
        headers=settings.max_headers,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        keep_alive=settings.keep_alive_timeout,
        write_timeout=settings.write_timeout,
    )


def tls_of(settings: ServeSettings) -> Tls | None:
    """HTTPS as the settings have it; None: plain HTTP. Raises UsageError."""
    if settings.tls_cert is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key, settings.tls_min_version)


def http_config(app: Any, rules: ConnectionRules, tls: Tls | None = None) -> uvicorn.Config:
    """uvicorn, as far as it is used here."""
    return uvicorn.Config(
        app,
        http=ClientConnection.under(rules),
        # What it has to say goes where everything goes.
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here looks at who is behind a proxy, or at web sockets.
        proxy_headers=False,
        ws="none",
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )


class HttpServer(uvicorn.Server):
    """Serves one listening socket until told to stop."""

    def __init__(
        self,
        config: uvicorn.Config,
        stopping: Stopping,
        *,
        delay: Callable[[], float],
        timeout: Callable[[], float],
        before: Callable[[], Awaitable[None]] | None = None,
        started: Callable[[], None] = lambda: None,
    ):
        """`delay` and `timeout` are asked when it is told to stop. `before` is awaited before any
        connection is taken, and may set `should_exit`; `started` is called when they are."""
        super().__init__(config)
        self._stopping = stopping
        self._delay = delay
        self._timeout = timeout
        self._before = before
        self._on_start = started
        self._linger = LINGER

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's handlers: they would raise the signal again at the end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _signalled(self, number: int) -> None:
        if self._stopping.begun:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # A person at the terminal has no balancer to wait for.
        self.stop(0.0 if number == signal.SIGINT else self._delay())

    def stop(self, delay: float = 0.0) -> None:
        """Stop in an orderly way, `delay` seconds from now; further calls change nothing."""
        if self._stopping.begun:
            return
        notify(STOPPING, status="running requests end")
        self._stopping.begun = True
        log.info("stopping")
        asyncio.get_running_loop().call_later(delay, self._exit)

    def handed_over(self) -> None:
        """Another process takes the connections of the same socket from now on."""
        if not self._stopping.begun:
            log.info("another server has taken over")
            self._linger = HANDOVER_LINGER
            self.stop()

    def _exit(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._before is not None:
            await self._unless_stopped(asyncio.ensure_future(self._before()))
        if self.should_exit:
            return
        await super().startup(sockets)
        if not self.should_exit:
            self._on_start()

    async def _unless_stopped(self, work: asyncio.Future[None]) -> None:
        while not self.should_exit and not work.done():
            await asyncio.wait({work}, timeout=_LOOK_AGAIN)
        if not work.done():
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.begun = True
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        await self._gone(self._linger)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await self._gone(self._timeout()):
            await self._cut()
        await self.lifespan.shutdown()

    async def _cut(self) -> None:
        """End what still runs; each of them can still say so to its client."""
        tasks = list(self.server_state.tasks)
        log.warning("%d requests were not finished in time and are cut off", len(tasks))
        self._stopping.cut = True
        for task in tasks:
            task.cancel()
        await self._gone(_LAST_WORDS)
        for connection in list(self.server_state.connections):
            transport = connection.transport
            assert transport is not None
            transport.abort()

    async def _gone(self, within: float) -> bool:
        """Whether nobody is owed anything any more, within so many seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within
        state = self.server_state
        while state.tasks or any(map(_owed, state.connections)):
            if loop.time() >= until:
                return False
            await asyncio.sleep(_LOOK_AGAIN)
        return True


def _owed(connection: Any) -> bool:
    """Whether a connection is in use. One that is closed may stay for long under TLS, where the
    other side has to say good-bye, too."""
    transport = connection.transport
    return not transport.is_closing() or transport.get_write_buffer_size() > 0
