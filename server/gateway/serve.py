"""`adapterctl serve`: put the parts together, run until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from fastapi import FastAPI

from adapters.audit import Origin
from adapters.bases.digest import base_digest
from adapters.bases.engine_limits import engine_refusal, on_cpu
from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, BaseError, EngineStartFailed, UsageError
from adapters.models import BaseDescriptor, BaseRecord
from adapters.registry.snapshot import SnapshotWatcher
from adapters.store.layout import StoreLayout
from server.gateway.admin import admin_router
from server.gateway.admission.serving import limits_of
from server.gateway.app import Lifespan, create_app
from server.gateway.assembly import Parts, Serving, assemble
from server.gateway.auth import AdminGate
from server.gateway.banner import ready_banner
from server.gateway.client_connection import ConnectionRules
from server.gateway.handover import Taken, offered, take
from server.gateway.http_server import HttpServer, client_limits, http_config, tls_of
from server.gateway.logs import Logs, log_pipe
from server.gateway.reloading import Reloading
from server.gateway.runtime import (
    allow_connections,
    announced,
    has_terminal,
    listen,
    runtime_directory,
    url_of,
)
from server.gateway.service_manager import READY, notify
from server.gateway.tls import Tls
from server.ongoing import Ongoing
from server.quota_settings import quotas_of
from server.settings import ServeSettings

PROGRESS_INTERVAL = 5.0


def run(settings: ServeSettings, read: Callable[[], ServeSettings] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; raises AdapterctlError when it cannot begin.

    `read` reads the settings again, for SIGHUP; None: they stay.
    """
    allow_connections()
    with contextlib.ExitStack() as stack:
        logs = stack.enter_context(log_pipe(settings.log_format, settings.log_level))
        catalog = stack.enter_context(Catalog.open(settings.store))
        catalog.origin = Origin("server")
        base = _serving_base(catalog, settings.base)
        descriptor = catalog.base_descriptor(base.name)
        if settings.engine_url is None:
            _check_servable(base.name, descriptor)
        check_keys(settings, catalog)
        tls = tls_of(settings)
        handed = take(settings.store, settings.port) if settings.take_over else None
        listener = stack.enter_context(contextlib.closing(_listener(settings, handed)))
        watcher = SnapshotWatcher(settings.store)
        watcher.start()
        stack.callback(watcher.stop)
        runtime = stack.enter_context(runtime_directory())
        url = url_of(listener, "http" if tls is None else "https")
        door, here = runtime / "handover.sock", StoreLayout(settings.store).run
        stack.enter_context(announced(here, url, handover=door, certificate=settings.tls_cert))
        serving = Serving(settings, base, descriptor, catalog, watcher, runtime)
        server = _Server(serving, listener, Outside(url, tls, logs, handed, read))
        stack.enter_context(offered(listener, door, server.taken))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve())


def _listener(settings: ServeSettings, handed: Taken | None) -> socket.socket:
    if handed is None:
        return listen(settings.host, settings.port, reuse_port=settings.reuse_port)
    _say(f"taking over from process {handed.pid}, which answers until the engine here is ready")
    return handed.listener


def check_keys(settings: ServeSettings, catalog: Catalog) -> None:
    """Raises UsageError where others could reach a server to which nobody has a key."""
    if settings.loopback_only or settings.require_key == "never" or catalog.has_key():
        return
    raise UsageError(
        f"other machines can reach {settings.host}, and this store has no key yet: make one with "
        "'adapterctl keys create --scope admin', or listen on 127.0.0.1, or say "
        "--require-key never"
    )


def application(serving: Serving, parts: Parts, lifespan: Lifespan) -> FastAPI:
    """Everything that answers over HTTP."""
    settings = serving.settings
    admin = admin_router(
        serving.catalog,
        refresh=serving.watcher.refresh,
        engines=lambda: [parts.engine.status().model_dump(mode="json")],
        lanes=parts.operations,
        require_admin_key=settings.admin_key_needed,
        access_of=parts.state.callers.access_of,
        jobs_at_once=settings.jobs_at_once,
    )
    return create_app(parts.state, admin, lifespan, metrics_gate(serving.catalog, settings))


def metrics_gate(catalog: Catalog, settings: ServeSettings) -> AdminGate | None:
    """Who may read the metrics, which name every adapter and tenant; None: everybody."""
    if settings.open_metrics:
        return None
    return AdminGate(catalog.key_for, require_key=settings.admin_key_needed)


def _serving_base(catalog: Catalog, name: str) -> BaseRecord:
    base = catalog.base(name)
    if base_digest(Path(base.path)) != base.digest:
        raise BaseError(
            f"base '{name}' at {base.path} is not what was registered any more: put the original "
            "back, or register the new content under another name"
        )
    return base


def _check_servable(name: str, descriptor: BaseDescriptor) -> None:
    why = engine_refusal(descriptor, cpu=on_cpu())
    if why is not None:
        raise BaseError(f"base '{name}' cannot be served: {why}")


@dataclass(frozen=True, slots=True)
class Outside:
    """What a server has to do with besides its clients and engines. `handed`: the server whose port
    it takes over; `read` reads the settings again."""

    url: str
    tls: Tls | None
    logs: Logs
    handed: Taken | None
    read: Callable[[], ServeSettings] | None


class _Server:
    """The gateway's HTTP server and its engine, started and stopped together."""

    def __init__(self, serving: Serving, listener: socket.socket, outside: Outside):
        settings = self._settings = serving.settings
        self._base = serving.base
        self._catalog = serving.catalog
        self._watcher = serving.watcher
        self._listener = listener
        self._outside = outside
        self._parts = parts = assemble(serving)
        self._rules = ConnectionRules(client_limits(settings), parts.state.stopping)
        app = application(serving, parts, self._lifespan)
        self._http = HttpServer(
            http_config(app, self._rules, outside.tls),
            parts.state.stopping,
            delay=lambda: parts.state.settings.drain_delay,
            timeout=lambda: parts.state.settings.stop_timeout,
            # Nobody is answered here before the engine is ready: the other server still does.
            before=None if outside.handed is None else self._start_engine,
            started=lambda: None if outside.handed is None else outside.handed.done(),
        )
        self._reloading = Reloading(settings, outside.read or (lambda: settings), [self._apply])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: AdapterctlError | None = None

    async def serve(self) -> None:
        """Until stopped; raises what kept the engine from its first start."""
        self._loop = loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hung_up, has_terminal())
        try:
            await self._http.serve(sockets=[self._listener])
        finally:
            await self._parts.stop()
        if self._failure is not None:
            raise self._failure

    def taken(self) -> None:
        """Another server has the port now; from any thread."""
        if self._loop is not None:
            # It may be over by now.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._http.handed_over)

    def _hung_up(self, had_terminal: bool) -> None:
        """SIGHUP: read the settings again; or the terminal was closed that it runs in."""
        if had_terminal and not has_terminal():
            self._http.stop()
        else:
            self._reloading.reload()

    def _apply(self, settings: ServeSettings) -> None:
        state, tls = self._parts.state, self._outside.tls
        state.settings = settings
        state.lanes.wait = settings.merged_wait
        state.lanes.doors.limit(limits_of(settings))
        state.callers.tell(settings.tenant_weights, settings.tenant_adapters)
        state.quotas.replace(quotas_of(settings.tenant_quotas))
        self._rules.limits = client_limits(settings)
        self._outside.logs.set_level(settings.log_level)
        if (tls is None) != (settings.tls_cert is None):
            raise UsageError("HTTPS is switched on or off by a restart only")
        if tls is not None and settings.tls_cert is not None:
            tls.reload(settings.tls_cert, settings.tls_key)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        # The port answers at once (/healthz, 503 with Retry-After) while the engine comes up.
        running = Ongoing(self._run)
        running.start()
        # In a thread of its own: nothing waits for it, not even the end of the server.
        threading.Thread(target=self._resume_jobs, daemon=True).start()
        try:
            yield
        finally:
            await running.close()

    def _resume_jobs(self) -> None:
        try:
            for job_id in self._catalog.resume_interrupted(at_once=self._settings.jobs_at_once):
                _say(f"job {job_id} was interrupted and goes on")
        except AdapterctlError as error:
            _say(f"interrupted jobs could not be resumed: {error.message}")

    async def _run(self) -> None:
        """Start the engine, then follow the registry: pinned merged engines come after it."""
        if self._outside.handed is None:
            await self._start_engine()
        if self._failure is None:
            await self._parts.follow()

    async def _start_engine(self) -> None:
        began = time.monotonic()
        progress = asyncio.create_task(self._show_progress(began))
        try:
            await self._parts.engine.start()
        except AdapterctlError as error:
            if isinstance(error, EngineStartFailed) and error.log_tail:
                _say(f"the engine's log ends:\n{error.log_tail}\n")
            self._failure = error
            self._http.should_exit = True
        else:
            seconds = time.monotonic() - began
            # What is there by now stays, or has no cycles: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            url, snapshot = self._outside.url, self._watcher.current
            needed = self._parts.state.callers.key_needed
            _say(ready_banner(url, self._base.name, snapshot, seconds, key_needed=needed))
            notify(READY, status=f"{self._base.name} and its adapters at {url}")
        finally:
            progress.cancel()

    async def _show_progress(self, began: float) -> None:
        log = self._parts.engine.status().address
        _say(f"{self._outside.url} is up; the engine is starting ({log}), which may take a minute")
        notify(status="the engine is starting")
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            _say(f"  engine starting, {time.monotonic() - began:.0f} s")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
