"""What running engines hold, so that nothing is removed that an engine may read again.

vLLM reads an adapter again from its path after its cache evicted it, and dies if the files are
gone by then. So an engine records each digest before it hands out the path. The record counts
for as long as the engine's process lives: it holds a flock, which the kernel drops at its death.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from adapters.errors import InUse, InvalidReference, StoreError, VersionNotFound
from adapters.store.content import blob_complete
from adapters.store.durable import fsync_directory, store_io, write_durably
from adapters.store.layout import StoreLayout, digest_hex
from adapters.store.locks import open_lock_file, store_lock, try_flock, wait_flock

_ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")
# Somebody who looks whether the lock is held takes it for a moment: wait that out.
_ACQUIRE_TIMEOUT_S = 3.0


class EngineLease:
    """The lease of one engine; entered once, held for the whole life of the engine's process."""

    def __init__(self, layout: StoreLayout, engine_id: str):
        if not _ENGINE_ID.fullmatch(engine_id) or engine_id.endswith(".lock"):
            raise InvalidReference(
                f"'{engine_id}' is no valid engine id: use letters, digits and -"
            )
        self._layout = layout
        self._engine_id = engine_id
        self._directory = layout.leases / engine_id
        self._descriptor: int | None = None
        self._held: set[str] = set()
        self._mutex = threading.Lock()

    def acquire(self) -> None:
        """Takes the lease and forgets what a dead engine of the same id held.

        Raises InUse when a live engine has it, StoreReadOnly or DiskFull when it cannot be kept.
        """
        if self._descriptor is not None:
            return
        with store_lock(self._layout, shared=True), store_io(self._layout.root):
            descriptor = open_lock_file(_lock_path(self._layout, self._engine_id))
            try:
                if not wait_flock(descriptor, shared=False, timeout=_ACQUIRE_TIMEOUT_S):
                    raise InUse(
                        f"another live engine holds the lease '{self._engine_id}' on the store at "
                        f"{self._layout.root}: give this engine another id"
                    )
                self._directory.mkdir(exist_ok=True)
                for mark in self._directory.iterdir():
                    mark.unlink()
                fsync_directory(self._layout.leases)
            except BaseException:
                os.close(descriptor)
                raise
            self._descriptor = descriptor

    def hold(self, digest: str) -> Path:
        """Records durably that this engine may read `digest` from now on; returns its directory.

        Raises VersionNotFound if the blob is not there, StoreBusy while gc runs for too long.
        """
        assert self._descriptor is not None, "hold() before acquire()"
        digits = digest_hex(digest)
        blob = self._layout.blob(digest)
        with self._mutex:
            if digest in self._held and blob_complete(blob):
                return blob
            with store_lock(self._layout, shared=True):
                if not blob_complete(blob):
                    raise VersionNotFound(
                        f"the store at {self._layout.root} has no intact content for {digest}: "
                        "register it again"
                    )
                with store_io(self._layout.root):
                    write_durably(self._directory / digits, b"")
            self._held.add(digest)
        return blob

    def hold_all(self, digests: Iterable[str]) -> None:
        """As `hold` for many at once, and whether or not their content is there.

        Not forced to the disk one by one: what a power cut takes of the records it takes of this
        process, too. Raises StoreErrors.
        """
        assert self._descriptor is not None, "hold_all() before acquire()"
        names = {digest: digest_hex(digest) for digest in digests}
        with self._mutex, store_lock(self._layout, shared=True), store_io(self._layout.root):
            for digest, digits in names.items():
                (self._directory / digits).touch()
                self._held.add(digest)

    def remove(self) -> None:
        """Ends the lease and removes its records, which gc does of those that are left behind."""
        self.release()
        with suppress(StoreError, OSError), store_lock(self._layout, shared=True):
            for mark in _marks(self._directory):
                (self._directory / mark).unlink(missing_ok=True)
            self._directory.rmdir()
            _lock_path(self._layout, self._engine_id).unlink(missing_ok=True)

    def release(self) -> None:
        """Ends the lease; nothing is held any more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._held.clear()
            os.close(descriptor)

    def __enter__(self) -> EngineLease:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def held_digests(layout: StoreLayout) -> dict[str, set[str]]:
    """What live engines hold: digest -> the ids of the engines that may read it."""
    held: dict[str, set[str]] = {}
    with store_io(layout.root):
        for engine_id in _engine_ids(layout):
            if not engine_lives(layout, engine_id):
                continue
            for mark in _marks(layout.leases / engine_id):
                held.setdefault(f"sha256:{mark}", set()).add(engine_id)
    return held


def engine_lives(layout: StoreLayout, engine_id: str) -> bool:
    """Whether a process holds the lease of that id. Raises OSError."""
    try:
        descriptor = os.open(_lock_path(layout, engine_id), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once do not take each other for an engine.
        return not try_flock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def remove_dead_leases(layout: StoreLayout) -> list[str]:
    """Removes what dead engines left; returns their ids. Needs the store's exclusive lock:
    nobody takes a lease meanwhile, so unlinking a lock file cannot split it in two."""
    removed: list[str] = []
    for engine_id in dead_engines(layout):
        directory = layout.leases / engine_id
        for mark in directory.iterdir() if directory.is_dir() else ():
            mark.unlink()
        if directory.is_dir():
            directory.rmdir()
        _lock_path(layout, engine_id).unlink(missing_ok=True)
        removed.append(engine_id)
    return removed


def dead_engines(layout: StoreLayout) -> list[str]:
    """The ids of engines that left a lease behind and live no more. Raises OSError."""
    return [i for i in _engine_ids(layout) if not engine_lives(layout, i)]


def _lock_path(layout: StoreLayout, engine_id: str) -> Path:
    return layout.leases / f"{engine_id}.lock"


def _engine_ids(layout: StoreLayout) -> list[str]:
    try:
        names = [entry.name for entry in layout.leases.iterdir()]
    except FileNotFoundError:
        return []
    return sorted({n.removesuffix(".lock") for n in names if _ENGINE_ID.fullmatch(n)})


def _marks(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if _HEX.fullmatch(entry.name)]
    except FileNotFoundError:
        return []
