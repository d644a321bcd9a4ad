"""Making a store and opening one: directories, marker, database revision."""

from __future__ import annotations

import os
from pathlib import Path

from adapters.errors import AlreadyExists, StoreDamaged, StoreReadOnly
from adapters.registry import reader
from adapters.registry.faults import registry_errors
from adapters.store.durable import fsync_directory, store_io, write_durably
from adapters.store.layout import STORE_FORMAT, StoreLayout
from adapters.store.locks import store_lock


def init_store(layout: StoreLayout) -> None:
    """Makes a store, or finishes one whose making was cut short; a whole one stays as it is.

    Any number of processes may do this at once. The marker is written last: without it there is
    no store. Raises AlreadyExists for a directory that holds something else.
    """
    if layout.marker.exists():
        layout.check_marker()
    else:
        refuse_foreign(layout)
    with store_io(layout.root):
        layout.root.mkdir(parents=True, exist_ok=True)
        if layout.marker.exists() and all(d.is_dir() for d in layout.directories()):
            return
    with store_lock(layout, shared=False), store_io(layout.root):
        for directory in layout.directories():
            directory.mkdir(exist_ok=True)
        # Restored from a backup: what a backup leaves out is there now.
        if layout.marker.exists():
            return
        layout.database.touch()
        _migrate(layout.root)
        finish_store(layout)


def finish_store(layout: StoreLayout) -> None:
    """Writes the marker of a store that has everything else, durably. Raises OSError."""
    marker = f'{{"format": {STORE_FORMAT}}}\n'
    for directory in reversed(layout.directories()):
        fsync_directory(directory)
    write_durably(layout.marker, marker.encode())
    fsync_directory(layout.root.absolute().parent)


def check_store(layout: StoreLayout) -> None:
    """Opens a store: marker and revision fit, or the database is upgraded.

    Raises StoreNotFound, StoreTooNew, StoreDamaged, StoreReadOnly, StoreBusy.
    """
    layout.check_marker()
    if not _outdated(layout):
        return
    if not os.access(layout.database, os.W_OK):
        raise StoreReadOnly(
            f"the registry of the store at {layout.root} must be upgraded but cannot be written: "
            "open it once with write access"
        )
    with store_lock(layout, shared=False):
        if _outdated(layout):
            _migrate(layout.root)


def _outdated(layout: StoreLayout) -> bool:
    with registry_errors(layout.root):
        connection = reader.connect(layout.database)
        try:
            if reader.revision(connection) is None:
                raise StoreDamaged(
                    f"the registry {layout.database} is empty: put back a copy of registry.db "
                    "(see docs/backup.md)"
                )
            return reader.needs_migration(layout.root, connection)
        finally:
            connection.close()


def _migrate(root: Path) -> None:
    # alembic and SQLAlchemy cost a second to import; most openings need neither.
    from adapters.registry.migrate import upgrade
    from adapters.registry.writer import RegistryWriter

    writer = RegistryWriter(root)
    try:
        with writer.transaction() as connection:
            upgrade(connection)
    finally:
        writer.close()


def refuse_foreign(layout: StoreLayout) -> None:
    """Raises AlreadyExists where a directory holds what is no part of an unfinished store."""
    ours = {path.name for path in layout.directories()} | {
        "blobs",
        layout.reports.name,
        layout.lock.name,
        layout.repair_lock.name,
        *(layout.database.name + suffix for suffix in ("", "-wal", "-shm", "-journal")),
    }
    with store_io(layout.root):
        try:
            present = {entry.name for entry in layout.root.iterdir()}
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise AlreadyExists(
                f"{layout.root} is a file: a store needs a directory of its own"
            ) from None
    foreign = sorted(n for n in present - ours if not n.startswith(f".{layout.marker.name}."))
    if foreign:
        raise AlreadyExists(
            f"{layout.root} holds other things ('{foreign[0]}'): a store needs an empty directory"
        )
