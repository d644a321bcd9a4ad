"""Processes of jobs and merges that start at once: forks of one that has imported torch already.

They are real processes, to be killed like any other; what is left out is only the seconds of the
import. One request at a time over a socket, in JSON; what is answered first is the process id.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from adapters.jobs.launching import AT_ONCE_VARIABLE
from adapters.store.job_files import LOG_NAME
from adapters.store.layout import StoreLayout

_LARGEST = 65536


class Fork:
    """One of these processes. Nobody waits for them, so that its id may be another's as soon as it
    has ended: it is known by its start, too."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
        except psutil.NoSuchProcess:
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.is_running()

    def signal(self, number: int) -> None:
        """Send it; nothing where the process has ended."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)


class Forks:
    """The end of the socket that asks, and the process at the other one."""

    def __init__(self) -> None:
        self._socket, self._process = _started()

    def close(self) -> None:
        """End the process; its forks go on."""
        self._socket.close()
        self._process.wait(60)

    def launch(
        self, layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None
    ) -> Fork:
        """In place of adapters.jobs.launching.launch."""
        order = {"job": [str(layout.root), job_id], "at_once": at_once}
        return self._ask(order, lock)

    def merge(self, store: Path, reference: str, out: Path, allowed: int) -> Fork:
        """A merge that says so and sleeps once `allowed` bytes are written; see `said`."""
        return self._ask({"merge": [str(store), reference, str(out), allowed]})

    def said(self) -> str:
        """What the last process sent."""
        return self._socket.recv(_LARGEST).decode()

    def _ask(self, order: dict[str, Any], *descriptors: int) -> Fork:
        socket.send_fds(self._socket, [json.dumps(order).encode()], list(descriptors))
        return Fork(int(self.said()))


class Forked:
    """In place of adapters.jobs.launching.launch, and what became of whom it launched."""

    def __init__(self, forks: Forks) -> None:
        self._forks = forks
        self._doomed = False
        self.processes: dict[str, Fork] = {}

    def kill_next(self) -> None:
        """The next process is killed as soon as it is there."""
        self._doomed = True

    def __call__(
        self, layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None
    ) -> None:
        process = self._forks.launch(layout, job_id, lock, at_once=at_once)
        self.processes[job_id] = process
        if self._doomed:
            self._doomed = False
            process.kill()

    def close(self) -> None:
        """Kill those that still run."""
        for process in self.processes.values():
            process.kill()


def _started() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.quantize.forks", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
    assert ours.recv(_LARGEST) == b"ready"
    return ours, process


@contextmanager
def forking() -> Iterator[Forks]:
    """Starts the process that forks, and ends it."""
    forks = Forks()
    try:
        yield forks
    finally:
        forks.close()


def main() -> None:
    """Fork whenever asked, until the other end is closed."""
    import quantize.jobs.kinds  # noqa: F401  what takes the time
    import adapters.registry.jobs  # noqa: F401  isort:skip

    # Nobody waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        end.send(b"ready")
        while True:
            data, descriptors, _, _ = socket.recv_fds(end, _LARGEST, 1)
            if not data:
                return
            pid = os.fork()
            if pid == 0:
                _be(json.loads(data), descriptors, end)
            for descriptor in descriptors:
                os.close(descriptor)
            end.send(str(pid).encode())


def _be(order: dict[str, Any], descriptors: list[int], end: socket.socket) -> None:
    """What the fork does; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if "job" in order:
            store, job_id = order["job"]
            _job(store, job_id, order["at_once"], descriptors[0])
        else:
            store, reference, out, allowed = order["merge"]
            _merge(store, reference, out, allowed, end)
        code = 0
    except BaseException:
        # As the interpreter would; into the job's log.
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _job(store: str, job_id: str, at_once: int | None, lock: int) -> None:
    from quantize.job import main as job

    log = os.open(
        StoreLayout(Path(store)).job(job_id) / LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    for number in (1, 2):
        os.dup2(log, number)
    if at_once is not None:
        os.environ[AT_ONCE_VARIABLE] = str(at_once)
    sys.argv[1:] = [store, job_id, str(lock)]
    job()


def _merge(store: str, reference: str, out: str, allowed: int, end: socket.socket) -> None:
    from adapters.catalog import Catalog
    from quantize.merging.merge import Watcher, merge

    def progress(done: int, total: int) -> None:
        if done >= allowed:
            end.send(b"killing")
            time.sleep(600)

    with Catalog.open(Path(store)) as catalog:
        merge(catalog, reference, Path(out), watch=Watcher(progress=progress))


if __name__ == "__main__":
    main()
