"""What SQLite's errors mean for a store."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import DiskFull, StoreBusy, StoreDamaged, StoreError, StoreReadOnly

BUSY_TIMEOUT_S = 15.0

_RESTORE = (
    "put back a copy of registry.db (see docs/backup.md), or move it away and register again: "
    "the blobs are still there"
)


@contextmanager
def registry_errors(root: Path) -> Iterator[None]:
    """Turns a sqlite3 error raised inside into the StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise registry_error(root, error) from error


@contextmanager
def parsing(what: str) -> Iterator[None]:
    """A value that this code never writes (a hand-edited database) is damage, not a traceback."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise StoreDamaged(
            f"the registry's {what} hold a value that cannot be read ({error}): put back a copy of "
            "registry.db (see docs/backup.md)"
        ) from error


def registry_error(root: Path, error: BaseException | None) -> StoreError:  # noqa: PLR0911
    """The StoreError for a sqlite3 error met on the registry of the store at `root`."""
    # The low byte is the primary code; the rest says where SQLite met it.
    code = int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
    database = root / "registry.db"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(
            f"the registry {database} has been locked by another process for "
            f"{BUSY_TIMEOUT_S:.0f} s: try again"
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(root)):
        return DiskFull(
            f"no space left for the registry {database}: free some space there "
            "(`adapterctl gc` removes what nothing uses) and try again"
        )
    lost = isinstance(error, FileNotFoundError) or code == sqlite3.SQLITE_CANTOPEN
    if lost and not database.exists():
        return StoreDamaged(f"the store at {root} has lost its registry.db: {_RESTORE}")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM) or (
        code == sqlite3.SQLITE_CANTOPEN and not os.access(root, os.W_OK)
    ):
        return StoreReadOnly(
            f"the registry {database} cannot be written: check its owner, its permissions and "
            "how its file system is mounted"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreDamaged(f"the registry {database} is damaged ({error}): {_RESTORE}")
    if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
        return StoreDamaged(
            f"the registry {database} lacks tables or columns ({error}): {_RESTORE}"
        )
    return StoreError(f"the registry {database} failed: {error}")


def _disk_is_full(root: Path) -> bool:
    # SQLite reports a full disk as FULL for its files, as IOERR for its shared memory.
    try:
        return shutil.disk_usage(root).free < 1 << 20
    except OSError:
        return False
