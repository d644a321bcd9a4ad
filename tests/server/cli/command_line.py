"""Running the command line in tests: in this process, or as one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from adapters.catalog import Catalog
from adapters.registry.snapshot import SnapshotWatcher
from server.cli.main import run
from server.gateway.admin import admin_router
from server.gateway.admin_lanes import LaneOperations
from server.gateway.errors import install_error_handlers
from tests.server.cli.scripted_lanes import ScriptedLanes

ENGINES = [{"id": "e1", "kind": "external", "base": "tiny", "state": "ready", "restarts": 0}]


@dataclass(frozen=True)
class Answer:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as exactly one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    """The command line with options that every call gets."""

    options: tuple[str, ...] = ()

    def __call__(self, *arguments: str) -> Answer:
        """Run it in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([*self.options, *arguments])
        return Answer(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str) -> Any:
        """Run it with --json; the document of a success."""
        answer = self(*arguments, "--json")
        assert answer.code == 0, answer.err
        return answer.json

    def refused(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run it with --json; exit code and error of a failure, which is one line on stderr."""
        answer = self(*arguments, "--json")
        assert answer.code != 0
        error = answer.json["error"]
        complaints = [line for line in answer.err.splitlines() if line.startswith("adapterctl: ")]
        assert complaints == [f"adapterctl: {error['message']}"]
        assert "Traceback" not in answer.err
        return answer.code, error


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that adapterctl reads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ADAPTERCTL_")}
    return {**kept, **more}


def program(*arguments: str, environment: Mapping[str, str] | None = None) -> Answer:
    """Run it as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "server.cli.main", *arguments],
        capture_output=True,
        text=True,
        env=environment or clean_environment(),
        timeout=120,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def serving(app: Callable[..., Awaitable[None]]) -> Iterator[str]:
    """A real server for `app` on a free loopback port; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@contextlib.contextmanager
def admin_server(
    store: Path,
    *,
    require_key: bool = False,
    lanes: Callable[[Catalog], LaneOperations] = ScriptedLanes,
) -> Iterator[str]:
    """The admin API of a store as the gateway mounts it; yields the server's URL."""
    watcher = SnapshotWatcher(store)
    watcher.start()
    try:
        with Catalog.open(store) as catalog:
            app = FastAPI()
            install_error_handlers(app)
            app.include_router(
                admin_router(
                    catalog,
                    refresh=watcher.refresh,
                    engines=lambda: list(ENGINES),
                    lanes=lanes(catalog),
                    require_admin_key=require_key,
                )
            )
            app.state.watcher = watcher
            with serving(app) as url:
                yield url
    finally:
        watcher.stop()
