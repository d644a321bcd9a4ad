"""Keeping the database small."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from adapters.registry import schema


def trim_changes(connection: Connection, *, keep: int) -> int:
    """Forgets all but the last `keep` changes; returns how many. Snapshots that are further
    behind read everything again."""
    newest = connection.execute(select(func.max(schema.changes.c.seq))).scalar()
    if newest is None:
        return 0
    result = connection.execute(delete(schema.changes).where(schema.changes.c.seq <= newest - keep))
    return int(result.rowcount)
