"""history, tag and rollback."""

from __future__ import annotations

import click

from adapters.errors import UsageError
from adapters.lanes.models import LaneChange
from adapters.models import TagChange
from adapters.references import parse_reference
from server.cli.complete import adapter_names, references
from server.cli.options import Command
from server.cli.output import clean, emit_json, local_time, say, table
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("name", shell_complete=adapter_names)
@pass_session
def history(session: Session, name: str) -> None:
    """List what became of adapter NAME: tags that moved, deployments, routes, rollbacks."""
    backend = session.backend()
    tags, lanes = backend.history(name), backend.lane_history(name)
    # Both are in their own order; sorting keeps it where times are the same.
    both: list[TagChange | LaneChange] = [*tags, *lanes]
    changes = sorted(both, key=lambda change: change.at)
    if session.json:
        emit_json([_line_document(name, change) for change in changes])
    elif not changes:
        say(f"No tag of {clean(name)} has ever moved, and nobody has deployed it.")
    else:
        headers = ("time", "what", "of", "from", "to", "by", "reason")
        table(headers, [_cells(change) for change in changes])


def _cells(change: TagChange | LaneChange) -> tuple[str, ...]:
    when = local_time(change.at)
    if isinstance(change, TagChange):
        old, new = _label(change.old), _label(change.new)
        return (when, "tag", change.tag, old, new, change.actor, change.reason)
    return (
        *(when, change.kind, change.subject, change.old or "-", change.new or "-"),
        *(change.actor, change.reason),
    )


def _line_document(name: str, change: TagChange | LaneChange) -> dict[str, object]:
    if isinstance(change, TagChange):
        return {"kind": "tag", **_document(name, change)}
    return {"name": name, **change.model_dump(mode="json")}


@click.command(cls=Command)
@click.argument("reference", metavar="NAME:TAG", shell_complete=references)
@click.argument("version", metavar="VERSION", required=False)
@click.option("--default", is_flag=True, help="Also make TAG what the bare NAME means.")
@click.option("--delete", is_flag=True, help="Remove the tag; the version stays.")
@pass_session
def tag(session: Session, reference: str, version: str | None, default: bool, delete: bool) -> None:
    """Point NAME:TAG at VERSION: `v3`, `sha256:...` or another tag. A new tag is made.

    VERSION can be left out with --default: the tag stays where it is, and the bare NAME means it.
    """
    if delete:
        if version is not None or default:
            raise UsageError("--delete takes neither a VERSION nor --default")
        change = session.backend().delete_tag(reference)
    else:
        change = session.backend().tag(reference, version, default=default)
    _say_change(session, reference, change)


@click.command(cls=Command)
@click.argument("reference", metavar="NAME:TAG", shell_complete=references)
@pass_session
def rollback(session: Session, reference: str) -> None:
    """Point NAME:TAG back at the version it named before; repeat to go further back."""
    _say_change(session, reference, session.backend().rollback(reference))


def _say_change(session: Session, reference: str, change: TagChange) -> None:
    name = parse_reference(reference).name
    if session.json:
        emit_json(_document(name, change))
        return
    if change.new is None:
        say(f"{name}:{change.tag} is gone (it was {_label(change.old)})")
    elif change.old == change.new:
        say(f"{name}:{change.tag} is {_label(change.new)} already")
    else:
        before = "new" if change.old is None else f"it was {_label(change.old)}"
        say(f"{name}:{change.tag} is now {_label(change.new)} ({before})")


def _document(name: str, change: TagChange) -> dict[str, object]:
    return {
        "name": name,
        **change.model_dump(mode="json"),
        "old": None if change.old is None else f"v{change.old}",
        "new": None if change.new is None else f"v{change.new}",
    }


def _label(version: int | None) -> str:
    return "-" if version is None else f"v{version}"
