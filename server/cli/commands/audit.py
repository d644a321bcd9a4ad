"""audit: who did what, from where, and what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click

from adapters.audit import OK, AuditFilter, AuditRecord
from adapters.expiry import parse_since
from server.cli.options import Command
from server.cli.output import emit_json, local_time, say, table
from server.cli.session import Session, pass_session

# Of what was changed, in a table for people; --json has all of it.
_SHOWN = 80


@click.command(cls=Command)
@click.option("--since", metavar="TIME", help="From then on: 12h, 30d, 2w ago, or a date.")
@click.option("--actor", metavar="WHO", help="An actor, or the id of a key.")
@click.option(
    "--subject", metavar="WHAT", help="What it was done to: NAME with all its tags, or a pattern."
)
@click.option("--action", metavar="ACTION", help="For example register, tag, or 'keys.*'.")
@click.option("--request", metavar="ID", help="The id of a request to a server.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="The newest."
)
@pass_session
def audit(
    session: Session,
    since: str | None,
    actor: str | None,
    subject: str | None,
    action: str | None,
    request: str | None,
    limit: int,
) -> None:
    """Show the audit log, the newest rows last: who did what, from where, with which outcome."""
    moment = None if since is None else parse_since(since, datetime.now(UTC))
    wanted = AuditFilter(
        since=moment, actor=actor, subject=subject, action=action, request=request, limit=limit
    )
    rows = session.backend().audit(wanted)
    if session.json:
        emit_json([row.model_dump(mode="json") for row in rows])
    elif not rows:
        say("Nothing in the audit log matches.")
    else:
        table(("time", "actor", "from", "action", "subject", "outcome", "change"), map(_row, rows))


def _row(row: AuditRecord) -> tuple[str, ...]:
    said = _change(row) if row.outcome == OK else (row.message or "")
    shown = said if len(said) <= _SHOWN else said[: _SHOWN - 1] + "…"
    at = local_time(row.at)
    return (at, row.actor, row.origin, row.action, row.subject, row.outcome, shown)


def _change(row: AuditRecord) -> str:
    before, after = row.before or {}, row.after or {}
    return "; ".join(
        f"{name}: {_value(before.get(name))} -> {_value(after.get(name))}"
        for name in dict.fromkeys((*before, *after))
    )


def _value(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
