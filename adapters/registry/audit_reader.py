"""Reads of the audit log, through the standard library."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime
from typing import Any

from adapters.audit import AuditFilter, AuditRecord
from adapters.registry.faults import parsing

_COLUMNS = "id, at, actor, key, action, subject, origin, request, before, after, outcome, message"


def load_audit(connection: sqlite3.Connection, wanted: AuditFilter) -> list[AuditRecord]:
    """The newest rows that match, the oldest of them first."""
    conditions, values = _conditions(wanted)
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM audit {where}ORDER BY id DESC LIMIT ?", (*values, wanted.limit)
    ).fetchall()
    with parsing("audit log"):
        return [_record(row) for row in reversed(rows)]


def _conditions(wanted: AuditFilter) -> tuple[list[str], list[Any]]:
    found: list[tuple[str, tuple[Any, ...]]] = []
    if wanted.since is not None:
        since = wanted.since
        since = since.replace(tzinfo=UTC) if since.tzinfo is None else since.astimezone(UTC)
        found.append(("at >= ?", (since.isoformat(timespec="microseconds"),)))
    if wanted.actor is not None:
        found.append(("(actor = ? OR key = ?)", (wanted.actor,) * 2))
    if wanted.subject is not None:
        within = "substr(subject, 1, length(?) + 1) = ? || ':'"
        # Brackets would be a class of characters to GLOB.
        pattern = wanted.subject.replace("[", "[[]")
        condition = f"(subject = ? OR {within} OR subject GLOB ?)"
        found.append((condition, (wanted.subject,) * 3 + (pattern,)))
    if wanted.action is not None:
        found.append(("action GLOB ?", (wanted.action.replace("[", "[[]"),)))
    if wanted.request is not None:
        found.append(("request = ?", (wanted.request,)))
    if wanted.before is not None:
        found.append(("id < ?", (wanted.before,)))
    return [condition for condition, _ in found], [value for _, given in found for value in given]


def _record(row: tuple[Any, ...]) -> AuditRecord:
    return AuditRecord(
        id=row[0],
        at=datetime.fromisoformat(row[1]),
        actor=row[2],
        key=row[3],
        action=row[4],
        subject=row[5],
        origin=row[6],
        request=row[7],
        before=json.loads(row[8]) if row[8] else None,
        after=json.loads(row[9]) if row[9] else None,
        outcome=row[10],
        message=row[11],
    )
