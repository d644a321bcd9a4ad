"""Bases: adding and removing them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, delete, func, insert, select, update

from adapters.errors import AlreadyExists, InUse
from adapters.models import BaseDescriptor
from adapters.registry import schema
from adapters.registry.auditing import changed
from adapters.registry.rows import find_adapter, find_base, now, require_base
from adapters.registry.writer import note_change


def add_base(connection: Connection, name: str, path: Path, descriptor: BaseDescriptor) -> None:
    """Adds a base. The same base again may have moved to another path; anything else under a
    taken name raises AlreadyExists."""
    if find_adapter(connection, name) is not None:
        raise AlreadyExists(f"'{name}' is an adapter: a base needs another name")
    existing = find_base(connection, name)
    values = {
        "path": str(path),
        "architecture": descriptor.architecture,
        "descriptor": descriptor.model_dump_json(),
    }
    if existing is None:
        connection.execute(
            insert(schema.bases).values(
                name=name, digest=descriptor.digest, added_at=now(), **values
            )
        )
    elif existing.digest != descriptor.digest:
        raise AlreadyExists(
            f"base '{name}' is another model ({existing.path}, {existing.digest[:19]}…): "
            f"take another name, or remove it first with `adapterctl base rm {name}`"
        )
    else:
        connection.execute(
            update(schema.bases).where(schema.bases.c.id == existing.id).values(**values)
        )
    before = None if existing is None else {"path": existing.path, "digest": existing.digest}
    after = {"path": str(path), "digest": descriptor.digest}
    changed(connection, f"base {name}", before, after)
    note_change(connection, name)


def remove_base(connection: Connection, name: str) -> None:
    """Removes a base; raises BaseNotFound, or InUse while versions were checked against it."""
    base = require_base(connection, name)
    users = connection.execute(
        select(schema.adapters.c.name, func.count())
        .join(schema.versions, schema.versions.c.adapter_id == schema.adapters.c.id)
        .where(schema.versions.c.base_id == base.id)
        .group_by(schema.adapters.c.name)
        .order_by(schema.adapters.c.name)
    ).all()
    if users:
        total = sum(count for _, count in users)
        names = ", ".join(str(user) for user, _ in users[:3]) + (" …" if len(users) > 3 else "")
        raise InUse(
            f"base '{name}' is used by {total} version{'s' if total > 1 else ''} of "
            f"{names}: remove those first"
        )
    connection.execute(delete(schema.bases).where(schema.bases.c.id == base.id))
    changed(connection, f"base {name}", {"path": base.path, "digest": base.digest}, None)
    note_change(connection, name)
