"""Files that a running server leaves for others: its private socket directory, its address."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from adapters.errors import UsageError

_PREFIX = "adapterctl-"


def allow_connections() -> None:
    """As many open files as the system lets this process have: a connection is one, a request that
    is answered two, and shells begin with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS refuses "infinity" here.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A short, private directory for sockets; those of killed servers are cleaned up first."""
    parent = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if not os.access(parent, os.W_OK):
        parent = Path(tempfile.gettempdir())
    for stale in parent.glob(f"{_PREFIX}[0-9]*-*"):
        found = re.fullmatch(rf"{_PREFIX}([0-9]+)-.*", stale.name)
        with contextlib.suppress(OSError):
            mine = stale.stat().st_uid == os.getuid()
            if found and mine and not psutil.pid_exists(int(found.group(1))):
                shutil.rmtree(stale, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def announced(run: Path, url: str) -> Iterator[None]:
    """`server-PID.json` in the store's run directory while this server runs: the CLI finds it.

    A file for each server: several may serve one store. A killed one leaves its file, which
    readers pass over and the next server removes.
    """
    run.mkdir(parents=True, exist_ok=True)
    _remove_stale(run)
    file = run / f"server-{os.getpid()}.json"
    staged = file.with_suffix(".new")
    staged.write_text(json.dumps({"pid": os.getpid(), "url": url}), encoding="utf-8")
    staged.replace(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _remove_stale(run: Path) -> None:
    for file in run.glob("server-*.json"):
        found = re.fullmatch(r"server-([0-9]+)\.json", file.name)
        if found and not psutil.pid_exists(int(found.group(1))):
            file.unlink(missing_ok=True)


def listen(host: str, port: int) -> socket.socket:
    """Bind before anything costly is started; raises UsageError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL under which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
