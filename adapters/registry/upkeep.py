"""Keeping the database small."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, select

from adapters.registry import schema
from adapters.registry.auditing import changed
from adapters.store.gc import GcReport


def note_gc(connection: Connection, report: GcReport) -> None:
    """What a garbage collection has removed, for the audit log."""
    removed = {"blobs": report.blobs, "reports": report.reports, "staging": report.staging}
    told = {name: list(gone) for name, gone in removed.items() if gone}
    if told:
        changed(connection, "store", told, {"bytes_freed": report.bytes_freed})


def trim_changes(connection: Connection, *, keep: int) -> int:
    """Forgets all but the last `keep` changes; returns how many. Snapshots that are further
    behind read everything again."""
    newest = connection.execute(select(func.max(schema.changes.c.seq))).scalar()
    if newest is None:
        return 0
    result = connection.execute(delete(schema.changes).where(schema.changes.c.seq <= newest - keep))
    return int(result.rowcount)
