"""A job's directory: `lock`, held by its process as long as that lives, `log`, and `work/`.

The lock is taken by whoever starts the process and handed over to it as an open file, so there is
no moment in which a living job holds no lock. flock belongs to the open file: the starter's own
descriptor may be closed.
"""

from __future__ import annotations

import os
from pathlib import Path

from adapters.store.durable import store_io
from adapters.store.layout import StoreLayout
from adapters.store.locks import open_lock_file, try_flock, wait_flock

LOG_NAME = "log"
WORK_NAME = "work"
_LOCK_NAME = "lock"
# Readers hold the lock shared for an instant: no reason to believe that the job lives.
_READERS_S = 2.0
_LOG_PART = 1 << 18


def job_lives(layout: StoreLayout, job_id: str) -> bool:
    """Whether the process of the job holds its lock; never a guess by process ids."""
    try:
        descriptor = os.open(layout.job(job_id) / _LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not try_flock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def take_job_lock(layout: StoreLayout, job_id: str) -> int | None:
    """The job's lock as an open file, its directory made if need be; None while the job lives."""
    directory = layout.job(job_id)
    with store_io(layout.root):
        # A store made before there were jobs has no directory for them.
        (directory / WORK_NAME).mkdir(parents=True, exist_ok=True)
        if job_lives(layout, job_id):
            return None
        descriptor = open_lock_file(directory / _LOCK_NAME)
        if wait_flock(descriptor, shared=False, timeout=_READERS_S):
            return descriptor
        os.close(descriptor)
        return None


def read_log(path: Path, offset: int) -> tuple[str, int]:
    """Whole lines of a log from byte `offset`, and the offset after them; none: ("", offset)."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            part = file.read(_LOG_PART)
    except FileNotFoundError:
        return "", offset
    whole = part.rfind(b"\n") + 1
    # A line longer than any part is cut rather than waited for.
    part = part[:whole] if whole or len(part) < _LOG_PART else part
    return part.decode(errors="replace"), offset + len(part)
