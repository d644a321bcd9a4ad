"""`adapterctl serve`: put the parts together, run until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
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
from server.connection import Connection
from server.gateway.admin import admin_router
from server.gateway.app import create_app
from server.gateway.assembly import Serving, assemble
from server.gateway.auth import AdminGate
from server.gateway.banner import ready_banner
from server.gateway.runtime import allow_connections, announced, listen, runtime_directory, url_of
from server.settings import ServeSettings

PROGRESS_INTERVAL = 5.0


def run(settings: ServeSettings) -> None:
    """Serve until SIGTERM or SIGINT; raises AdapterctlError when it cannot begin."""
    allow_connections()
    with contextlib.ExitStack() as stack:
        catalog = stack.enter_context(Catalog.open(settings.store))
        catalog.origin = Origin("server")
        base = _serving_base(catalog, settings.base)
        descriptor = catalog.base_descriptor(base.name)
        if settings.engine_url is None:
            _check_servable(base.name, descriptor)
        check_keys(settings, catalog)
        listener = stack.enter_context(contextlib.closing(listen(settings.host, settings.port)))
        watcher = SnapshotWatcher(settings.store)
        watcher.start()
        stack.callback(watcher.stop)
        runtime = stack.enter_context(runtime_directory())
        stack.enter_context(announced(StoreLayout(settings.store).run, url_of(listener)))
        serving = Serving(settings, base, descriptor, catalog, watcher, runtime)
        server = _Server(serving, listener)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve())


def check_keys(settings: ServeSettings, catalog: Catalog) -> None:
    """Raises UsageError where others could reach a server to which nobody has a key."""
    if settings.loopback_only or settings.require_key == "never" or catalog.has_key():
        return
    raise UsageError(
        f"other machines can reach {settings.host}, and this store has no key yet: make one with "
        "'adapterctl keys create --scope admin --scope infer', or listen on 127.0.0.1, or say "
        "--require-key never"
    )


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


class _Server:
    """The gateway's HTTP server and its engine, started and stopped together."""

    def __init__(self, serving: Serving, listener: socket.socket):
        self._settings = serving.settings
        self._base = serving.base
        self._catalog = serving.catalog
        self._watcher = serving.watcher
        self._listener = listener
        self._url = url_of(listener)
        self._parts = parts = assemble(serving)
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
        app = create_app(
            parts.state, admin, self._lifespan, metrics_gate(serving.catalog, settings)
        )
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=Connection.within(settings.write_timeout),
                log_level="warning",
                access_log=False,
                server_header=False,
                # Nothing here looks at who is behind a proxy, or at web sockets.
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=int(settings.stop_timeout),
            )
        )
        self._failure: AdapterctlError | None = None

    async def serve(self) -> None:
        """Until stopped; raises what kept the engine from its first start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._uvicorn.handle_exit, number, None)
        await self._uvicorn.serve(sockets=[self._listener])
        if self._failure is not None:
            raise self._failure

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        # The port answers at once (/healthz, 503 with Retry-After) while the engine comes up.
        running = asyncio.create_task(self._run())
        # In a thread of its own: nothing waits for it, not even the end of the server.
        threading.Thread(target=self._resume_jobs, daemon=True).start()
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await self._parts.stop()

    def _resume_jobs(self) -> None:
        try:
            for job_id in self._catalog.resume_interrupted(at_once=self._settings.jobs_at_once):
                _say(f"job {job_id} was interrupted and goes on")
        except AdapterctlError as error:
            _say(f"interrupted jobs could not be resumed: {error.message}")

    async def _run(self) -> None:
        """Start the engine, then follow the registry: pinned merged engines come after it."""
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
            self._uvicorn.should_exit = True
        else:
            seconds = time.monotonic() - began
            _say(ready_banner(self._url, self._base.name, self._watcher.current, seconds))
        finally:
            progress.cancel()

    async def _show_progress(self, began: float) -> None:
        log = self._parts.engine.status().address
        _say(f"{self._url} is up; the engine is starting ({log}), which may take a minute")
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            _say(f"  engine starting, {time.monotonic() - began:.0f} s")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: they would raise the signal again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
