"""base add, ls, show and rm."""

from __future__ import annotations

import click

from adapters.models import BaseRecord
from server.cli.backend import Watch
from server.cli.complete import base_names
from server.cli.options import Command
from server.cli.output import (
    clean,
    emit_json,
    fields,
    local_time,
    progress,
    say,
    short_digest,
    table,
)
from server.cli.session import Session, pass_session


@click.command(cls=Command)
@click.argument("name")
@click.argument("directory", metavar="DIR", type=click.Path())
@pass_session
def add(session: Session, name: str, directory: str) -> None:
    """Register the Hugging Face model directory DIR as base NAME.

    With --server, DIR is a directory on the server's machine.
    """
    with progress(json_mode=session.json) as shown:
        base = session.backend().base_add(name, directory, Watch(shown.step, shown.advance))
    if session.json:
        emit_json(_document(base))
        return
    say(f"Base {base.name}: {base.architecture}, {short_digest(base.digest)}")
    say(f"Next: adapterctl register DIR --name NAME --base {base.name}")


@click.command(cls=Command)
@pass_session
def ls(session: Session) -> None:
    """List the bases."""
    bases = session.backend().bases()
    if session.json:
        emit_json([_document(base) for base in bases])
    elif not bases:
        say("No base yet. Register one: adapterctl base add NAME DIR")
    else:
        table(
            ("name", "architecture", "digest", "path"),
            [(b.name, b.architecture, short_digest(b.digest), b.path) for b in bases],
        )


@click.command(cls=Command)
@click.argument("name", shell_complete=base_names)
@pass_session
def show(session: Session, name: str) -> None:
    """Show base NAME."""
    base = session.backend().base(name)
    if session.json:
        emit_json(_document(base))
        return
    fields(
        [
            ("name", base.name),
            ("path", base.path),
            ("architecture", base.architecture),
            ("digest", base.digest),
            ("added", local_time(base.added_at)),
        ]
    )


@click.command(cls=Command)
@click.argument("name", shell_complete=base_names)
@pass_session
def rm(session: Session, name: str) -> None:
    """Forget base NAME; its directory stays. Refused while a version needs it."""
    session.backend().base_rm(name)
    if session.json:
        emit_json({"removed": [name]})
    else:
        say(f"Removed base {clean(name)}; its directory is untouched.")


def _document(base: BaseRecord) -> dict[str, object]:
    return base.model_dump(mode="json")
