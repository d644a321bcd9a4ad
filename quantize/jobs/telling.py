"""What a job tells of itself while it works, and how it hears that it should end.

A thread of its own, so that the work never waits for the registry, with a connection of its own
that leaves out the fsync: progress that a power cut takes back is no loss.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime

from adapters.errors import StoreError
from adapters.registry.faults import BUSY_TIMEOUT_S, registry_errors
from adapters.registry.job_reader import cancel_asked
from adapters.store.layout import StoreLayout

# How often the registry is written to, at most, and looked at for a wish to end.
_INTERVAL_S = 0.5
# How long the work gets to clean up after it was told to end; importing torch is not broken off
# (adapters.registry.interrupts), and on a busy machine that alone takes many seconds.
_GRACE_S = 20.0


class Teller:
    """Steps and progress of one job, into the registry and the log, as a context manager.

    When the job is cancelled the process gets SIGINT; if it is deep in a library that ignores
    this, `give_up` is called after a while, which must end it.
    """

    def __init__(self, layout: StoreLayout, job_id: str, give_up: Callable[[], None]) -> None:
        self._layout = layout
        self._id = job_id
        self._give_up = give_up
        self._step: str | None = None
        self._progress = (0, 0)
        self._told: tuple[str | None, tuple[int, int]] = (None, (0, 0))
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def step(self, text: str) -> None:
        """A new step has begun."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        sys.stderr.write(f"{moment} {text}\n")
        self._step, self._progress = text, (0, 0)
        self._wake.set()

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` parts of the step are finished; may be called as often as one likes."""
        self._progress = (done, total)

    def __enter__(self) -> Teller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The last step and progress are in the registry afterwards."""
        self._over.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        # A connection belongs to the thread that made it.
        with closing(_connect(self._layout)) as connection:
            stop_at: float | None = None
            while not self._over.is_set():
                self._wake.wait(_INTERVAL_S)
                self._wake.clear()
                self._tell(connection)
                if stop_at is None and self._unwanted(connection):
                    stop_at = time.monotonic() + _GRACE_S
                    os.kill(os.getpid(), signal.SIGINT)
                elif stop_at is not None and time.monotonic() > stop_at:
                    self._give_up()
            self._tell(connection)

    def _unwanted(self, connection: sqlite3.Connection) -> bool:
        with suppress(StoreError), registry_errors(self._layout.root):
            return not self._over.is_set() and cancel_asked(connection, self._id)
        return False

    def _tell(self, connection: sqlite3.Connection) -> None:
        now = (self._step, self._progress)
        if now == self._told:
            return
        step, (done, total) = now
        # Busy or full: it is only progress, and the next time may do better.
        with suppress(StoreError), registry_errors(self._layout.root):
            connection.execute(
                "UPDATE jobs SET step = ?, done = ?, total = ? WHERE id = ?",
                (step, done, total, self._id),
            )
            self._told = now


def _connect(layout: StoreLayout) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{layout.database.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
    )
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection
