"""Small reads that write transactions share: rows found by name, as typed tuples."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, Select, select

from adapters.access import no_adapter
from adapters.errors import BaseNotFound, TagNotFound, VersionNotFound
from adapters.references import Reference
from adapters.registry import schema


@dataclass(frozen=True, slots=True)
class BaseRow:
    """A base inside a transaction."""

    id: int
    name: str
    digest: str
    path: str


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """An adapter inside a transaction."""

    id: int
    name: str
    default_tag: str


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version inside a transaction."""

    id: int
    number: int
    digest: str


def now() -> str:
    """This moment as the registry writes it."""
    return datetime.now(UTC).isoformat()


def find_base(connection: Connection, name: str) -> BaseRow | None:
    """The base of that name."""
    table = schema.bases.c
    row = connection.execute(
        select(table.id, table.name, table.digest, table.path).where(table.name == name)
    ).first()
    return BaseRow(*row) if row else None


def require_base(connection: Connection, name: str) -> BaseRow:
    """The base of that name, or BaseNotFound."""
    found = find_base(connection, name)
    if found is None:
        raise BaseNotFound(f"there is no base '{name}': `adapterctl base ls` lists what there is")
    return found


def find_adapter(connection: Connection, name: str) -> AdapterRow | None:
    """The adapter of that name."""
    table = schema.adapters.c
    row = connection.execute(
        select(table.id, table.name, table.default_tag).where(table.name == name)
    ).first()
    return AdapterRow(*row) if row else None


def require_adapter(connection: Connection, name: str) -> AdapterRow:
    """The adapter of that name, or AdapterNotFound."""
    found = find_adapter(connection, name)
    if found is None:
        raise no_adapter(name)
    return found


def find_version(connection: Connection, adapter: AdapterRow, number: int) -> VersionRow | None:
    """Version `number` of an adapter."""
    return _version(
        connection.execute(_versions_of(adapter).where(schema.versions.c.number == number)).first()
    )


def find_digest(connection: Connection, adapter: AdapterRow, digest: str) -> VersionRow | None:
    """The version of an adapter that has this whole digest."""
    return _version(
        connection.execute(_versions_of(adapter).where(schema.versions.c.digest == digest)).first()
    )


def all_versions(connection: Connection, adapter: AdapterRow) -> list[VersionRow]:
    """Every version of an adapter, by number."""
    query = _versions_of(adapter).order_by(schema.versions.c.number)
    return [VersionRow(*row) for row in connection.execute(query)]


def tag_values(connection: Connection, adapter: AdapterRow) -> dict[str, int]:
    """The tags of an adapter: tag -> version number."""
    query = (
        select(schema.tags.c.tag, schema.versions.c.number)
        .join(schema.versions, schema.versions.c.id == schema.tags.c.version_id)
        .where(schema.tags.c.adapter_id == adapter.id)
        .order_by(schema.tags.c.tag)
    )
    return {str(tag): int(number) for tag, number in connection.execute(query)}


def select_version(connection: Connection, adapter: AdapterRow, ref: Reference) -> VersionRow:
    """The version a reference means; raises VersionNotFound or TagNotFound with what exists."""
    if ref.digest is not None:
        return _by_digest_prefix(connection, adapter, ref.digest)
    if ref.version is not None:
        number = ref.version
    else:
        tag = ref.tag or adapter.default_tag
        values = tag_values(connection, adapter)
        if tag not in values:
            raise TagNotFound(
                f"'{adapter.name}' has no tag '{tag}': it has {', '.join(values) or 'none'}"
            )
        number = values[tag]
    found = find_version(connection, adapter, number)
    if found is None:
        labels = [f"v{v.number}" for v in all_versions(connection, adapter)]
        raise VersionNotFound(
            f"'{adapter.name}' has no version v{number}: it has {', '.join(labels[-10:])}"
        )
    return found


def _by_digest_prefix(connection: Connection, adapter: AdapterRow, digest: str) -> VersionRow:
    matching = [v for v in all_versions(connection, adapter) if v.digest.startswith(digest)]
    if not matching:
        raise VersionNotFound(
            f"'{adapter.name}' has no version {digest}: `adapterctl show {adapter.name}` lists them"
        )
    if len(matching) > 1:
        labels = ", ".join(f"v{v.number}" for v in matching)
        raise VersionNotFound(f"{digest} of '{adapter.name}' means {labels}: give more digits")
    return matching[0]


def _versions_of(adapter: AdapterRow) -> Select[int, int, str]:
    table = schema.versions.c
    return select(table.id, table.number, table.digest).where(table.adapter_id == adapter.id)


def _version(row: Row[int, int, str] | None) -> VersionRow | None:
    return VersionRow(*row) if row else None
