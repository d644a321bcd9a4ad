"""Write transactions on the registry."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from adapters.audit import current_act
from adapters.registry import auditing, schema
from adapters.registry.faults import BUSY_TIMEOUT_S, registry_error, registry_errors
from adapters.registry.interrupts import interrupt_deferred


class RegistryWriter:
    """Opens write transactions; any thread may use it."""

    def __init__(self, root: Path):
        self._root = root
        self._engine = _make_engine(root / "registry.db")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """All of the block or nothing; on the disk when it ends. Raises StoreErrors.

        It is the only writer from its first statement on (BEGIN IMMEDIATE), so what it reads
        stays true until it commits. What it changes goes into the audit log with it. A Ctrl-C
        waits for its end.
        """
        try:
            with (
                interrupt_deferred(),
                registry_errors(self._root),
                self._engine.begin() as connection,
            ):
                auditing.begin(connection)
                yield connection
                told = auditing.finish(connection)
            if told and (act := current_act()) is not None:
                act.wrote()
        except SQLAlchemyError as error:
            raise registry_error(self._root, getattr(error, "orig", None) or error) from error

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def note_change(connection: Connection, name: str) -> None:
    """Tells snapshots in other processes to read a base or an adapter again."""
    connection.execute(insert(schema.changes).values(name=name))


def _make_engine(database: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        # rw, not rwc: a registry that vanished is damage to report, not a file to make anew.
        return sqlite3.connect(
            f"{database.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # we say BEGIN ourselves, see _begin
            check_same_thread=False,
        )

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=2, max_overflow=8
    )
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
