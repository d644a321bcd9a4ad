"""Reads of the registry through the standard library: quick to import, quick to run."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.errors import StoreDamaged, StoreTooNew
from adapters.frozen import Lane
from adapters.lanes.models import Deployment, Route
from adapters.models import (
    AdapterRecord,
    BaseDescriptor,
    BaseRecord,
    Manifest,
    TagChange,
    VersionRecord,
)
from adapters.registry import lane_reader
from adapters.registry.faults import BUSY_TIMEOUT_S, parsing, registry_errors
from adapters.registry.key_record import KeyRecord
from adapters.registry.revisions import HEAD, REVISIONS
from adapters.tenants import Quota

_VERSIONS = """
    SELECT a.name, v.number, v.digest, b.name, b.digest, v.format, v.method, v.lane, v.rank,
           v.size_bytes, v.registered_at,
           CASE WHEN v.lane <> 'hot' AND json_valid(v.manifest)
                THEN json_extract(v.manifest, '$.reasons[0]') END
    FROM versions v JOIN adapters a ON a.id = v.adapter_id JOIN bases b ON b.id = v.base_id
"""
_TAGS = """
    SELECT a.name, t.tag, v.number
    FROM tags t JOIN adapters a ON a.id = t.adapter_id JOIN versions v ON v.id = t.version_id
"""
_KEYS = """
    SELECT id, label, scopes, created_at, revoked_at, tenant, secret_sha256, adapters, expires_at,
           requests_per_minute, tokens_per_minute, concurrent
    FROM keys
"""
# What `changes` calls the keys: no name of a base or an adapter looks so.
KEYS_CHANGED = "#keys"
_LANES = {str(lane): lane for lane in Lane}
_BASES = "SELECT name, path, digest, architecture, added_at FROM bases"


def connect(database: Path, *, timeout: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A read-only connection that any thread may use, one at a time. Raises sqlite3.Error."""
    mode = "mode=ro"
    if not os.access(database.parent, os.W_OK) and not _has_wal(database):
        # SQLite wants to make its shared-memory file even to read; where the file system is
        # read-only nobody writes either, so reading without locks is right.
        mode += "&immutable=1"
    return sqlite3.connect(
        f"{database.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )


@contextmanager
def reading(root: Path) -> Iterator[sqlite3.Connection]:
    """One consistent view of the registry for the length of the block; StoreErrors on trouble."""
    with registry_errors(root):
        connection = connect(root / "registry.db")
        try:
            with consistent(connection):
                yield connection
        finally:
            connection.close()


@contextmanager
def consistent(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: everything inside sees the same state."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def revision(connection: sqlite3.Connection) -> str | None:
    """The database's revision; None for a database that has none yet."""
    found = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    ).fetchone()
    row = (
        connection.execute("SELECT version_num FROM alembic_version").fetchone() if found else None
    )
    return str(row[0]) if row else None


def needs_migration(root: Path, connection: sqlite3.Connection) -> bool:
    """Whether the database is older than the code; raises StoreTooNew if it is newer."""
    current = revision(connection)
    if current is not None and current not in REVISIONS:
        raise StoreTooNew(
            f"the registry of the store at {root} has revision {current}, made by a newer "
            f"adapterctl; this one knows up to {HEAD}: upgrade adapterctl"
        )
    return current != HEAD


def generation(connection: sqlite3.Connection) -> int:
    """The number of the last change."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return int(row[0]) if row else 0


def changed_since(connection: sqlite3.Connection, since: int) -> set[str] | None:
    """The names that changed after change number `since`; None if that is not known any more."""
    rows = connection.execute("SELECT name FROM changes WHERE seq > ?", (since,)).fetchall()
    if len(rows) != generation(connection) - since:
        return None
    return {str(row[0]) for row in rows}


def load_bases(
    connection: sqlite3.Connection, names: Iterable[str] | None = None
) -> dict[str, BaseRecord]:
    """The bases by name: all of them, or those among `names` that exist."""
    with parsing("bases"):
        return {
            row[0]: BaseRecord.model_construct(
                name=row[0],
                path=row[1],
                digest=row[2],
                architecture=row[3],
                added_at=datetime.fromisoformat(row[4]),
            )
            for row in _select(connection, _BASES, "name", names)
        }


def load_adapters(
    connection: sqlite3.Connection, names: Iterable[str] | None = None
) -> dict[str, AdapterRecord]:
    """The adapters by name, with versions and tags: all, or those among `names` that exist."""
    wanted = None if names is None else list(names)
    with _without_cycle_collection(), parsing("adapters"):
        return _load_adapters(connection, wanted)


def _load_adapters(
    connection: sqlite3.Connection, wanted: list[str] | None
) -> dict[str, AdapterRecord]:
    heads = _select(connection, "SELECT name, default_tag FROM adapters", "name", wanted)
    versions: dict[str, dict[int, VersionRecord]] = {}
    tags: dict[str, dict[str, int]] = {}
    for row in _select(connection, _VERSIONS, "a.name", wanted, order="v.number"):
        versions.setdefault(row[0], {})[row[1]] = _version(row)
    for name, tag, number in _select(connection, _TAGS, "a.name", wanted, order="t.tag"):
        tags.setdefault(name, {})[tag] = number
    deployments: dict[str, dict[int, Deployment]] = {}
    routes: dict[str, dict[str, Route]] = {}
    for row in _select(connection, lane_reader.DEPLOYMENTS, "a.name", wanted, order="v.number"):
        deployments.setdefault(row[0], {})[row[1]] = lane_reader.deployment(row)
    for row in _select(connection, lane_reader.ROUTES, "a.name", wanted, order="r.tag"):
        routes.setdefault(row[0], {})[row[1]] = lane_reader.route(row)
    # model_construct: what we wrote ourselves needs no validation, and 10,000 times it shows.
    return {
        name: AdapterRecord.model_construct(
            name=name,
            default_tag=default_tag,
            versions=versions.get(name, {}),
            tags=tags.get(name, {}),
            deployments=deployments.get(name, {}),
            routes=routes.get(name, {}),
        )
        for name, default_tag in heads
    }


def load_digests(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Every digest that a version has, with the versions (NAME:vN) that have it."""
    found: dict[str, list[str]] = {}
    for name, number, digest in connection.execute(
        "SELECT a.name, v.number, v.digest FROM versions v JOIN adapters a ON a.id = v.adapter_id "
        "ORDER BY a.name, v.number"
    ):
        found.setdefault(digest, []).append(f"{name}:v{number}")
    return found


def last_number(connection: sqlite3.Connection, name: str) -> int:
    """The highest version number that `name` ever had; 0 if none."""
    row = connection.execute("SELECT last FROM numbers WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def load_manifest(connection: sqlite3.Connection, name: str, number: int) -> Manifest:
    """The manifest of a version that exists; raises StoreDamaged if it does not parse."""
    row = connection.execute(
        "SELECT v.manifest FROM versions v JOIN adapters a ON a.id = v.adapter_id "
        "WHERE a.name = ? AND v.number = ?",
        (name, number),
    ).fetchone()
    try:
        return Manifest.model_validate_json(row[0])
    except (ValueError, TypeError) as error:
        raise StoreDamaged(f"the manifest of {name}:v{number} is damaged: {error}") from None


def load_descriptor(connection: sqlite3.Connection, name: str) -> BaseDescriptor | None:
    """A base's descriptor; None if there is no such base, StoreDamaged if it does not parse."""
    row = connection.execute(
        "SELECT descriptor, path FROM bases WHERE name = ?", (name,)
    ).fetchone()
    if row is None:
        return None
    try:
        found = BaseDescriptor.model_validate_json(row[0])
    except ValueError:
        raise StoreDamaged(
            f"the descriptor of base '{name}' is damaged: remove the base and add it again"
        ) from None
    return found.model_copy(update={"directory": row[1]})


def load_history(connection: sqlite3.Connection, name: str) -> list[TagChange]:
    """Every move of the tags of `name`, the oldest first, also of adapters that are gone."""
    rows = connection.execute(
        "SELECT tag, old, new, at, actor, reason FROM tag_history WHERE adapter = ? ORDER BY id",
        (name,),
    )
    with parsing("history"):
        return [
            TagChange(
                tag=tag,
                old=old,
                new=new,
                at=datetime.fromisoformat(at),
                actor=actor,
                reason=reason,
            )
            for tag, old, new, at, actor, reason in rows
        ]


def load_keys(connection: sqlite3.Connection) -> list[KeyRecord]:
    """All keys, revoked ones too, the oldest first."""
    rows = connection.execute(f"{_KEYS} ORDER BY created_at, id")
    return [_key(row) for row in rows]


def load_live_keys(connection: sqlite3.Connection) -> dict[str, KeyRecord]:
    """The keys that nobody revoked, expired ones too, by the sha256 (hex) of their secret."""
    rows = connection.execute(f"{_KEYS} WHERE revoked_at IS NULL")
    return {str(row[6]): _key(row) for row in rows}


def load_key(connection: sqlite3.Connection, key_id: str) -> tuple[KeyRecord, str] | None:
    """A key and the sha256 (hex) of its secret; None if there is no such key."""
    row = connection.execute(f"{_KEYS} WHERE id = ?", (key_id,)).fetchone()
    return (_key(row), str(row[6])) if row else None


def integrity_problems(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong: damaged pages, indexes, references to missing rows."""
    found = [
        f"registry.db: {row[0]}"
        for row in connection.execute("PRAGMA integrity_check(20)")
        if row[0] != "ok"
    ]
    found.extend(
        f"registry.db: row {row[1]} of {row[0]} refers to a missing row of {row[2]}"
        for row in connection.execute("PRAGMA foreign_key_check")
    )
    return found


def _version(row: tuple[Any, ...]) -> VersionRecord:
    return VersionRecord.model_construct(
        adapter=row[0],
        number=row[1],
        digest=row[2],
        base=row[3],
        base_digest=row[4],
        format=row[5],
        method=row[6],
        lane=_LANES[row[7]],
        rank=row[8],
        size_bytes=row[9],
        registered_at=datetime.fromisoformat(row[10]),
        reason=row[11],
    )


def _key(row: tuple[Any, ...]) -> KeyRecord:
    with parsing("keys"):
        return KeyRecord(
            id=row[0],
            label=row[1],
            scopes=tuple(json.loads(row[2])),
            created_at=datetime.fromisoformat(row[3]),
            revoked_at=datetime.fromisoformat(row[4]) if row[4] else None,
            tenant=row[5],
            adapters=tuple(json.loads(row[7])),
            expires_at=datetime.fromisoformat(row[8]) if row[8] else None,
            quota=Quota(*row[9:12]),
        )


def _select(
    connection: sqlite3.Connection,
    query: str,
    column: str,
    names: Iterable[str] | None,
    order: str | None = None,
) -> list[tuple[Any, ...]]:
    """Rows of `query`, for all names or in pieces for the given ones, ordered by name."""
    ordering = f" ORDER BY {column}" + (f", {order}" if order else "")
    if names is None:
        return connection.execute(query + ordering).fetchall()
    wanted = sorted(set(names))
    rows: list[tuple[Any, ...]] = []
    for start in range(0, len(wanted), 500):  # SQLite limits the number of parameters
        piece = wanted[start : start + 500]
        marks = ",".join("?" * len(piece))
        rows += connection.execute(f"{query} WHERE {column} IN ({marks}){ordering}", piece)
    return rows


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Tens of thousands of new records hold no cycles; looking for some takes a third of the time
    of loading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _has_wal(database: Path) -> bool:
    try:
        return database.with_name(database.name + "-wal").stat().st_size > 0
    except OSError:
        return False
