"""Tags: moving them, their append-only history, and rollback as an undo stack."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from adapters.errors import Conflict, StoreDamaged, TagNotFound, VersionNotFound
from adapters.models import TagChange
from adapters.registry import lanes, schema
from adapters.registry.auditing import changed
from adapters.registry.rows import (
    AdapterRow,
    VersionRow,
    all_versions,
    find_version,
    now,
    tag_values,
)
from adapters.registry.writer import note_change

LATEST = "latest"

# The reasons in the history. `rollback` reads them: keep their meaning.
REGISTER = "register"
TAG = "tag"
DEFAULT = "made default"
DELETE = "delete"
ROLLBACK = "rollback"
VERSION_REMOVED = "version removed"
ADAPTER_REMOVED = "adapter removed"


def move_tag(
    connection: Connection,
    adapter: AdapterRow,
    tag: str,
    version: VersionRow,
    *,
    actor: str,
    reason: str,
) -> TagChange:
    """Points a tag at a version. A tag that is there already leaves no line in the history."""
    old = tag_values(connection, adapter).get(tag)
    if old == version.number:
        return TagChange(
            tag=tag, old=old, new=old, at=datetime.fromisoformat(now()), actor=actor, reason=reason
        )
    row = {"adapter_id": adapter.id, "tag": tag, "version_id": version.id}
    connection.execute(
        upsert(schema.tags)
        .values(row)
        .on_conflict_do_update(index_elements=["adapter_id", "tag"], set_=row)
    )
    lanes.tag_moved(connection, adapter, tag, version.number, actor=actor)
    return record(connection, adapter, tag, old, version.number, actor=actor, reason=reason)


def drop_tag(
    connection: Connection, adapter: AdapterRow, tag: str, *, actor: str, reason: str
) -> TagChange:
    """Removes a tag; raises TagNotFound."""
    values = tag_values(connection, adapter)
    if tag not in values:
        raise TagNotFound(
            f"'{adapter.name}' has no tag '{tag}': it has {', '.join(values) or 'none'}"
        )
    connection.execute(
        delete(schema.tags).where(schema.tags.c.adapter_id == adapter.id, schema.tags.c.tag == tag)
    )
    lanes.tag_moved(connection, adapter, tag, None, actor=actor)
    return record(connection, adapter, tag, values[tag], None, actor=actor, reason=reason)


def set_default_tag(
    connection: Connection, adapter: AdapterRow, tag: str, *, actor: str
) -> TagChange | None:
    """Makes a tag what the bare NAME means; None if it was that already."""
    if adapter.default_tag == tag:
        return None
    connection.execute(
        update(schema.adapters).where(schema.adapters.c.id == adapter.id).values(default_tag=tag)
    )
    changed(connection, f"default tag of {adapter.name}", adapter.default_tag, tag)
    number = tag_values(connection, adapter).get(tag)
    return record(connection, adapter, tag, number, number, actor=actor, reason=DEFAULT)


def roll_back(connection: Connection, adapter: AdapterRow, tag: str, *, actor: str) -> TagChange:
    """Puts a tag back to its previous value; again and again walks further back.

    Raises TagNotFound for a tag that never was, Conflict if nothing is earlier,
    VersionNotFound if the earlier version was removed.
    """
    stack = _undo_stack(connection, adapter.name, tag)
    if not stack:
        values = tag_values(connection, adapter)
        raise TagNotFound(f"'{adapter.name}' has no tag '{tag}': it has {', '.join(values)}")
    if len(stack) < 2:
        raise Conflict(
            f"'{adapter.name}:{tag}' cannot be rolled back: it has no earlier value; "
            f"`adapterctl history {adapter.name}` lists what it was"
        )
    number = stack[-2]
    assert number is not None, "a deletion lies only on top of the undo stack"
    version = find_version(connection, adapter, number)
    if version is None:
        labels = [f"v{v.number}" for v in all_versions(connection, adapter)]
        raise VersionNotFound(
            f"'{adapter.name}:{tag}' cannot be rolled back: v{number}, its previous value, has "
            f"been removed; move it with `adapterctl tag` to one of {', '.join(labels[-10:])}"
        )
    return move_tag(connection, adapter, tag, version, actor=actor, reason=ROLLBACK)


def told_value(connection: Connection, name: str, tag: str) -> int | None:
    """Where the history says that a tag is now; raises StoreDamaged if it contradicts itself."""
    try:
        stack = _undo_stack(connection, name, tag)
    except IndexError:
        raise StoreDamaged(
            f"the history of '{name}:{tag}' tells of a rollback with nothing before it"
        ) from None
    return stack[-1] if stack else None


def record(
    connection: Connection,
    adapter: AdapterRow,
    tag: str,
    old: int | None,
    new: int | None,
    *,
    actor: str,
    reason: str,
) -> TagChange:
    """Appends one line to the history and tells other processes."""
    at = now()
    connection.execute(
        insert(schema.tag_history).values(
            adapter=adapter.name, tag=tag, old=old, new=new, at=at, actor=actor, reason=reason
        )
    )
    note_change(connection, adapter.name)
    if old != new:
        changed(connection, f"{adapter.name}:{tag}", _label(old), _label(new))
    return TagChange(
        tag=tag, old=old, new=new, at=datetime.fromisoformat(at), actor=actor, reason=reason
    )


def _label(number: int | None) -> str | None:
    return None if number is None else f"v{number}"


def _undo_stack(connection: Connection, name: str, tag: str) -> list[int | None]:
    """The values of a tag that rollback walks, the present one last; None means deleted.

    Replayed from the history: moves push, rollbacks pop, and the removal of the adapter empties
    the stack. A version removed while the tag pointed at it is taken out; if `latest` fell back
    then, to the newest that was left, every higher number on top was gone too.
    """
    table = schema.tag_history.c
    query = (
        select(table.old, table.new, table.reason)
        .where(table.adapter == name, table.tag == tag)
        .order_by(table.id)
    )
    stack: list[int | None] = []
    for old, new, reason in connection.execute(query):
        if reason == ADAPTER_REMOVED:
            stack = []
        elif reason == ROLLBACK:
            stack.pop()
        elif reason != DEFAULT:
            if reason == VERSION_REMOVED:
                stack = [value for value in stack if value != old]
                while new is not None and stack and (stack[-1] or 0) > new:
                    stack.pop()
            if stack and stack[-1] is None:
                stack.pop()
            if not stack or stack[-1] != new:
                stack.append(new)
    return stack
