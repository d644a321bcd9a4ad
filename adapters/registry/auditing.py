"""Rows of the audit log, written by the transactions that they are about."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert

from adapters.audit import MOST_TEXT, OK, PRUNE, Act, Origin, current_act
from adapters.registry import schema

_PENDING = "audit"
# Who changes something without having said so: no method of the catalog does.
_UNSAID = Act("change", "", "unknown", Origin("local"))


@dataclass(slots=True)
class _Pending:
    """What a transaction has changed until now."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def begin(connection: Connection) -> None:
    """A transaction begins: nothing has changed in it yet."""
    connection.info[_PENDING] = _Pending()


def changed(connection: Connection, subject: str, before: object, after: object) -> None:
    """This transaction changes `subject`; None: there is none. Values are what JSON can hold."""
    pending: _Pending = connection.info[_PENDING]
    pending.before.setdefault(subject, before)
    pending.after[subject] = after


def finish(connection: Connection) -> bool:
    """Writes what the transaction has changed, as its last statement; whether it was anything."""
    pending: _Pending = connection.info.pop(_PENDING)
    if not pending.after:
        return False
    act = current_act() or _UNSAID
    subject = act.subject or next(iter(pending.after))
    write(connection, act, subject, before=_said(pending.before), after=_said(pending.after))
    return True


def write(
    connection: Connection,
    act: Act,
    subject: str | None = None,
    *,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    outcome: str = OK,
    message: str | None = None,
) -> None:
    """One row, of this moment."""
    connection.execute(
        insert(schema.audit).values(
            at=_moment(datetime.now(UTC)),
            actor=_cut(act.who),
            key=act.origin.key,
            action=act.action,
            subject=_cut(act.subject if subject is None else subject),
            origin=_cut(act.origin.place),
            request=act.origin.request,
            before=None if before is None else json.dumps(before),
            after=None if after is None else json.dumps(after),
            outcome=outcome,
            message=None if message is None else _cut(message),
        )
    )


def prune(connection: Connection, act: Act, older_than: datetime) -> int:
    """Removes the rows from before that moment; returns how many.

    The row that says so comes first: the database lets nothing go that none tells of.
    """
    until = _moment(older_than.astimezone(UTC))
    write(connection, Act(PRUNE, until, act.actor, act.origin))
    return int(connection.execute(delete(schema.audit).where(schema.audit.c.at < until)).rowcount)


def _moment(moment: datetime) -> str:
    # Always with its microseconds: as texts they are compared.
    return moment.isoformat(timespec="microseconds")


def _said(values: dict[str, Any]) -> dict[str, Any] | None:
    """Without what is not there."""
    return {name: value for name, value in values.items() if value is not None} or None


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"
