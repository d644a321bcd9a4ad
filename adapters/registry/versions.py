"""Versions: adding one under an adapter's name, and removing versions or whole adapters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, CursorResult, delete, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from adapters.errors import AlreadyExists, InUse
from adapters.models import Manifest
from adapters.references import Reference
from adapters.registry import lanes, schema
from adapters.registry.auditing import changed
from adapters.registry.rows import (
    AdapterRow,
    VersionRow,
    all_versions,
    find_adapter,
    find_base,
    find_digest,
    now,
    require_adapter,
    require_base,
    select_version,
    tag_values,
)
from adapters.registry.tags import (
    ADAPTER_REMOVED,
    LATEST,
    REGISTER,
    VERSION_REMOVED,
    drop_tag,
    move_tag,
)
from adapters.registry.writer import note_change


def add_version(
    connection: Connection,
    *,
    name: str,
    base: str,
    digest: str,
    size_bytes: int,
    manifest: Manifest,
    tags: Collection[str],
    actor: str,
) -> tuple[int, bool]:
    """Adds a version and moves `latest` and `tags` to it; returns (number, created).

    Content that the adapter has already keeps its number; the tags move all the same. Raises
    AlreadyExists if a base has the name, BaseNotFound if the base is gone or is another one now.
    """
    base_row = require_base(connection, base)
    if base_row.digest != manifest.base_digest:
        raise AlreadyExists(
            f"base '{base}' was replaced by another model while this was registered: try again"
        )
    if find_base(connection, name) is not None:
        raise AlreadyExists(f"'{name}' is a base: an adapter needs another name")
    adapter = find_adapter(connection, name) or _add_adapter(connection, name)
    version = find_digest(connection, adapter, digest)
    created = version is None
    if version is None:
        values: dict[str, str | int | None] = {
            "digest": digest,
            "base_id": base_row.id,
            "format": manifest.format,
            "method": manifest.method,
            "lane": str(manifest.lane),
            "rank": manifest.rank,
            "size_bytes": size_bytes,
            "manifest": manifest.model_dump_json(),
        }
        version = _add_version(connection, adapter, values)
    for tag in sorted({LATEST, *tags}):
        move_tag(connection, adapter, tag, version, actor=actor, reason=REGISTER)
    note_change(connection, name)
    return version.number, created


def remove(
    connection: Connection,
    ref: Reference,
    *,
    force: bool,
    held: dict[str, set[str]],
    actor: str,
) -> list[str]:
    """Removes an adapter (bare NAME) or one version; returns what was removed.

    `held` says which digests live engines hold. Unless forced, raises InUse while an engine holds
    it or a tag points at it. `latest` follows registrations by itself, so it does not protect a
    whole adapter; it does protect the version it points at.
    """
    adapter = require_adapter(connection, ref.name)
    if ref == Reference(ref.name):
        doomed = all_versions(connection, adapter)
        others = [tag for tag in tag_values(connection, adapter) if tag != LATEST]
        if not force:
            _refuse_tags(str(ref), others)
            _refuse_held(str(ref), doomed, held)
            _refuse_served(connection, str(ref), adapter, doomed)
        _remove_adapter(connection, adapter, doomed, actor)
        return [f"{adapter.name}:v{version.number}" for version in doomed] + [adapter.name]
    version = select_version(connection, adapter, ref)
    values = tag_values(connection, adapter)
    label = f"{adapter.name}:v{version.number}"
    pointing = [tag for tag, number in values.items() if number == version.number]
    if not force:
        _refuse_tags(label, pointing)
        _refuse_held(label, [version], held)
        _refuse_served(connection, label, adapter, [version])
    if len(all_versions(connection, adapter)) == 1:
        _remove_adapter(connection, adapter, [version], actor)
        return [label, adapter.name]
    _remove_version(connection, adapter, version, pointing, actor)
    return [label]


def tags_of(connection: Connection, name: str, number: int) -> list[str]:
    """The tags of `name` that point at version `number`."""
    values = tag_values(connection, require_adapter(connection, name))
    return [tag for tag, value in values.items() if value == number]


def next_number(connection: Connection, name: str) -> int:
    """The number that the next new version of `name` gets."""
    row = connection.execute(schema.numbers.select().where(schema.numbers.c.name == name)).first()
    return int(row.last) + 1 if row else 1


def _add_adapter(connection: Connection, name: str) -> AdapterRow:
    result = connection.execute(insert(schema.adapters).values(name=name, default_tag=LATEST))
    return AdapterRow(_new_id(result), name, LATEST)


def _add_version(
    connection: Connection, adapter: AdapterRow, values: dict[str, str | int | None]
) -> VersionRow:
    number = next_number(connection, adapter.name)
    connection.execute(
        upsert(schema.numbers)
        .values(name=adapter.name, last=number)
        .on_conflict_do_update(index_elements=["name"], set_={"last": number})
    )
    result = connection.execute(
        insert(schema.versions).values(
            adapter_id=adapter.id, number=number, registered_at=now(), **values
        )
    )
    changed(connection, f"{adapter.name}:v{number}", None, values["digest"])
    return VersionRow(_new_id(result), number, str(values["digest"]))


def _remove_adapter(
    connection: Connection, adapter: AdapterRow, versions: list[VersionRow], actor: str
) -> None:
    for tag in tag_values(connection, adapter):
        drop_tag(connection, adapter, tag, actor=actor, reason=ADAPTER_REMOVED)
    for version in versions:
        _delete_version(connection, adapter, version, actor)
    connection.execute(delete(schema.adapters).where(schema.adapters.c.id == adapter.id))
    note_change(connection, adapter.name)


def _remove_version(
    connection: Connection,
    adapter: AdapterRow,
    version: VersionRow,
    pointing: list[str],
    actor: str,
) -> None:
    for tag in pointing:
        if tag != LATEST:
            drop_tag(connection, adapter, tag, actor=actor, reason=VERSION_REMOVED)
    if LATEST in pointing:
        heir = next(
            v for v in reversed(all_versions(connection, adapter)) if v.number != version.number
        )
        move_tag(connection, adapter, LATEST, heir, actor=actor, reason=VERSION_REMOVED)
    _delete_version(connection, adapter, version, actor)
    note_change(connection, adapter.name)


def _new_id(result: CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None, "an INSERT of one row has a primary key"
    return int(key[0])


def _delete_version(
    connection: Connection, adapter: AdapterRow, version: VersionRow, actor: str
) -> None:
    lanes.version_goes(connection, adapter.name, version.number, actor=actor)
    connection.execute(delete(schema.versions).where(schema.versions.c.id == version.id))
    changed(connection, f"{adapter.name}:v{version.number}", version.digest, None)
    if not _has_content(connection, version.digest):
        label = f"{adapter.name}:v{version.number}"
        lanes.model_goes(connection, version.digest, label, actor=actor)


def _has_content(connection: Connection, digest: str, *, besides: Collection[int] = ()) -> bool:
    """Whether a version has that digest, those with the ids `besides` aside."""
    table = schema.versions.c
    query = select(table.id).where(table.digest == digest, table.id.not_in(besides)).limit(1)
    return connection.execute(query).first() is not None


def _refuse_tags(label: str, tags: list[str]) -> None:
    if tags:
        raise InUse(
            f"'{label}' is in use: tag{'s' if len(tags) > 1 else ''} {', '.join(tags)} "
            f"point{'' if len(tags) > 1 else 's'} at it; move or delete "
            f"{'them' if len(tags) > 1 else 'it'} first, or use --force"
        )


def _refuse_held(label: str, versions: list[VersionRow], held: dict[str, set[str]]) -> None:
    engines = sorted({engine for v in versions for engine in held.get(v.digest, ())})
    if engines:
        raise InUse(
            f"'{label}' is in use by engine {', '.join(engines)}: stop it first, or use --force "
            "(its files stay until the engine has ended)"
        )


def _refuse_served(
    connection: Connection, label: str, adapter: AdapterRow, versions: list[VersionRow]
) -> None:
    """Refuses what a deployment or a route counts on, unless that goes with it."""
    uses = lanes.uses(connection, adapter.name, {version.number for version in versions})
    doomed = {version.id for version in versions}
    for version in versions:
        if not _has_content(connection, version.digest, besides=doomed):
            users = lanes.users_of_model(connection, version.digest)
            uses += [f"{user} is served by it" for user in users]
    if uses:
        raise InUse(
            f"'{label}' is in use: {'; '.join(uses[:5])}; end that first with `adapterctl "
            "undeploy` or `adapterctl route --clear`, or use --force"
        )
