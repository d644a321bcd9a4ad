"""The registry in memory: references resolve without a database read.

A `Snapshot` never changes. `SnapshotWatcher` swaps in a new one when any process has changed the
registry, reading only what changed.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapters.access import Allows, everything
from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    StoreError,
    TagNotFound,
    VersionNotFound,
)
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from adapters.references import Reference, parse_reference
from adapters.registry import reader
from adapters.registry.faults import registry_error
from adapters.registry.key_record import KeyRecord
from adapters.registry.reader import KEYS_CHANGED

POLL_INTERVAL_S = 0.2
# Short: whoever calls refresh() waits for it, and there is an old snapshot to go on with.
_WATCH_TIMEOUT_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means: a version on its base, or (version None) the base itself."""

    reference: str
    base: BaseRecord
    version: VersionRecord | None
    # Of the same snapshot: with the version's deployment and the reference's route.
    adapter: AdapterRecord | None = None


class Snapshot:
    """Every base and adapter, and the keys that nobody revoked, at one moment.

    `generation` grows with every change. `keys` are found by the sha256 (hex) of their secret;
    expired ones are among them, since a key ends without a change of the registry.
    """

    def __init__(
        self,
        bases: Mapping[str, BaseRecord],
        adapters: Mapping[str, AdapterRecord],
        generation: int,
        keys: Mapping[str, KeyRecord] | None = None,
    ):
        self.bases: Mapping[str, BaseRecord] = MappingProxyType(dict(bases))
        self.adapters: Mapping[str, AdapterRecord] = MappingProxyType(dict(adapters))
        self.generation = generation
        self.keys: Mapping[str, KeyRecord] = MappingProxyType(dict(keys or {}))

    def resolve(self, text: str, allows: Allows = everything) -> Resolved:
        """What `text` refers to, for who may use the names that `allows` says.

        Raises InvalidReference, AdapterNotFound (with near names), TagNotFound, VersionNotFound. A
        name that may not be used is answered exactly as one that nobody has.
        """
        ref = parse_reference(text)
        if not allows(ref.name):
            raise self._unknown(ref.name, allows)
        adapter = self.adapters.get(ref.name)
        if adapter is not None:
            version = select_version(adapter, ref)
            return Resolved(text, self.bases[version.base], version, adapter)
        base = self.bases.get(ref.name)
        if base is None:
            raise self._unknown(ref.name, allows)
        if ref != Reference(ref.name):
            raise TagNotFound(
                f"'{ref.name}' is a base: it has no tags and versions, use its bare name",
                param="model",
            )
        return Resolved(text, base, None)

    def holders(self, digest: str) -> Sequence[tuple[AdapterRecord, VersionRecord]]:
        """Every version with this content: several adapters may have the same, or nobody."""
        return self._holders.get(digest, ())

    @functools.cached_property
    def _holders(self) -> Mapping[str, Sequence[tuple[AdapterRecord, VersionRecord]]]:
        found: dict[str, list[tuple[AdapterRecord, VersionRecord]]] = {}
        for adapter in self.adapters.values():
            for version in adapter.versions.values():
                found.setdefault(version.digest, []).append((adapter, version))
        return found

    def _unknown(self, name: str, allows: Allows) -> AdapterNotFound:
        # Imported for the one who mistyped, not for everybody who starts.
        from rapidfuzz import process

        names = [n for n in (*self.adapters, *self.bases) if allows(n)]
        near = process.extract(name, names, limit=3, score_cutoff=60)
        if near:
            hint = f"; did you mean {_one_of(n for n, _, _ in near)}?"
        else:
            hint = ": `adapterctl ls` and GET /v1/models list what there is"
        return AdapterNotFound(f"there is no adapter '{name}'{hint}", param="model")


def select_version(adapter: AdapterRecord, ref: Reference) -> VersionRecord:
    """The version of `adapter` that a reference means; VersionNotFound or TagNotFound."""
    if ref.digest is not None:
        return _by_digest(adapter, ref.digest)
    if ref.version is not None:
        number = ref.version
        if number not in adapter.versions:
            raise VersionNotFound(
                f"'{adapter.name}' has no version v{number}: it has {_labels(adapter)}",
                param="model",
            )
    else:
        tag = ref.tag or adapter.default_tag
        if tag not in adapter.tags:
            raise TagNotFound(
                f"'{adapter.name}' has no tag '{tag}': it has {', '.join(adapter.tags) or 'none'}",
                param="model",
            )
        number = adapter.tags[tag]
    return adapter.versions[number]


def _by_digest(adapter: AdapterRecord, digest: str) -> VersionRecord:
    matching = [v for v in adapter.versions.values() if v.digest.startswith(digest)]
    if not matching:
        raise VersionNotFound(
            f"'{adapter.name}' has no version with digest {digest}: it has {_labels(adapter)}",
            param="model",
        )
    if len(matching) > 1:
        raise VersionNotFound(
            f"{digest} of '{adapter.name}' means {_one_of(v.label for v in matching)}: "
            "give more digits",
            param="model",
        )
    return matching[0]


def _labels(adapter: AdapterRecord) -> str:
    labels = [version.label for version in adapter.versions.values()]
    return ("… " if len(labels) > 10 else "") + ", ".join(labels[-10:])


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def load_snapshot(connection: sqlite3.Connection) -> Snapshot:
    """The whole registry as it is. Raises sqlite3.Error."""
    with reader.consistent(connection):
        return Snapshot(
            reader.load_bases(connection),
            reader.load_adapters(connection),
            reader.generation(connection),
            reader.load_live_keys(connection),
        )


def update_snapshot(connection: sqlite3.Connection, old: Snapshot) -> Snapshot:
    """The registry as it is, reading only what changed since `old`. Raises sqlite3.Error."""
    with reader.consistent(connection):
        now = reader.generation(connection)
        if now == old.generation:
            return old
        changed = reader.changed_since(connection, old.generation) if now > old.generation else None
        if changed is not None:
            bases, adapters = dict(old.bases), dict(old.adapters)
            bases.update(fresh_bases := reader.load_bases(connection, changed))
            adapters.update(fresh := reader.load_adapters(connection, changed))
            for name in changed - fresh_bases.keys():
                bases.pop(name, None)
            for name in changed - fresh.keys():
                adapters.pop(name, None)
            keys = reader.load_live_keys(connection) if KEYS_CHANGED in changed else old.keys
            return Snapshot(bases, adapters, now, keys)
    # Trimmed away by gc, or another database altogether.
    return load_snapshot(connection)


class SnapshotWatcher:
    """Keeps `current` up to date from a thread; survives a busy, locked or missing database."""

    def __init__(self, root: Path, *, interval: float = POLL_INTERVAL_S):
        self._root = root
        self._database = root / "registry.db"
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Held while the connection is used: by the thread, or by refresh() of another one.
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._data_version = -1
        self._snapshot: Snapshot | None = None
        self.last_error: AdapterctlError | None = None

    @property
    def current(self) -> Snapshot:
        """The newest snapshot; only after start()."""
        assert self._snapshot is not None, "SnapshotWatcher.current before start()"
        return self._snapshot

    def start(self) -> None:
        """Loads the first snapshot (StoreErrors come out) and starts to watch."""
        with self._mutex:
            try:
                self._poll()
            except (sqlite3.Error, OSError) as error:
                raise registry_error(self._root, error) from error
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="registry-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; `current` stays as it is."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._mutex:
            self._disconnect()

    def refresh(self) -> Snapshot:
        """Looks at once: what this process has just written is in the snapshot returned.

        On trouble the old snapshot stays and `last_error` says why.
        """
        self._refresh()
        return self.current

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._refresh()

    def _refresh(self) -> None:
        with self._mutex:
            try:
                self._poll()
            except (sqlite3.Error, OSError, StoreError) as error:
                trouble = (
                    error if isinstance(error, StoreError) else registry_error(self._root, error)
                )
                if self.last_error is None:
                    _log.warning("serving the last known registry: %s", trouble.message)
                self.last_error = trouble
                self._disconnect()
            else:
                if self.last_error is not None:
                    _log.info("the registry can be read again")
                self.last_error = None

    def _poll(self) -> None:
        connection = self._connect()
        # Changes when another connection has committed, in this process or in any other.
        version = int(connection.execute("PRAGMA data_version").fetchone()[0])
        if self._snapshot is None:
            self._snapshot = load_snapshot(connection)
        elif version != self._data_version:
            self._snapshot = update_snapshot(connection, self._snapshot)
        self._data_version = version

    def _connect(self) -> sqlite3.Connection:
        # A database put back from a copy is another file; the open connection still has the old.
        status = os.stat(self._database)  # noqa: PTH116 (a missing file must raise, cheaply)
        file = (status.st_dev, status.st_ino)
        if self._connection is None or file != self._file:
            self._disconnect()
            self._connection = reader.connect(self._database, timeout=_WATCH_TIMEOUT_S)
            if self._file not in (None, file):
                self._snapshot = load_snapshot(self._connection)
            self._file = file
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._data_version = -1
