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
from adapters.store.durable import store_io

_PREFIX = "adapterctl-"
# SD_LISTEN_FDS_START
_FIRST_PASSED = 3


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
def announced(
    run: Path, url: str, *, handover: Path | None = None, certificate: Path | None = None
) -> Iterator[None]:
    """`server-PID.json` in the store's run directory while this server runs: the CLI finds it.

    A file for each server: several may serve one store. A killed one leaves its file, which
    readers pass over and the next server removes.
    """
    file = run / f"server-{os.getpid()}.json"
    staged = file.with_suffix(".new")
    document = {"pid": os.getpid(), "url": url}
    for name, path in (("handover", handover), ("certificate", certificate)):
        if path is not None:
            document[name] = str(path.resolve())
    with store_io(run.parent):
        run.mkdir(parents=True, exist_ok=True)
        _remove_stale(run)
        staged.write_text(json.dumps(document), encoding="utf-8")
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


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind before anything costly is started; raises UsageError when the address is taken.

    A socket that systemd passes on (LISTEN_FDS, sd_listen_fds(3)) is taken in place of one of its
    own: what connects while the service is started again waits there.
    """
    if (passed := _passed_on()) is not None:
        return passed
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


def _passed_on() -> socket.socket | None:
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count in {"", "0"}:
        return None
    if count != "1":
        raise UsageError(f"systemd passes {count} sockets on: one ListenStream is what is served")
    os.set_inheritable(_FIRST_PASSED, False)
    try:
        listener = socket.socket(fileno=_FIRST_PASSED)
    except OSError as error:
        raise UsageError(f"what systemd passes on is no socket: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def has_terminal() -> bool:
    """Whether this process runs in a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL under which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
