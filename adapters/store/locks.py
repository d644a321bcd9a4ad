"""flock on files of the store. The kernel drops a lock when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import StoreBusy
from adapters.store.durable import store_io
from adapters.store.layout import StoreLayout

LOCK_TIMEOUT_S = 30.0


def open_lock_file(path: Path) -> int:
    """A descriptor to lock, not inherited by programs that this process starts."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def try_flock(descriptor: int, *, shared: bool) -> bool:
    """Takes the lock if that needs no waiting."""
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_flock(descriptor: int, *, shared: bool, timeout: float) -> bool:
    """Takes the lock within `timeout` seconds; False if it could not.

    Polls instead of blocking: a blocked flock cannot be given a time-out without signals, which
    only a main thread can use.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not try_flock(descriptor, shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return True


@contextmanager
def store_lock(
    layout: StoreLayout, *, shared: bool, timeout: float = LOCK_TIMEOUT_S
) -> Iterator[None]:
    """The lock between those who add or hold blobs (shared) and those who remove (exclusive).

    Raises StoreBusy when it is not free within `timeout` seconds.
    """
    with store_io(layout.root):
        descriptor = open_lock_file(layout.lock)
    try:
        with store_io(layout.root):
            taken = wait_flock(descriptor, shared=shared, timeout=timeout)
        if not taken:
            other = "gc or an upgrade" if shared else "a registration"
            raise StoreBusy(
                f"the store at {layout.root} has been locked by {other} of another process for "
                f"{timeout:.0f} s: try again when it is done"
            )
        yield
    finally:
        os.close(descriptor)
