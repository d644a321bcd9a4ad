"""engines: what the running server runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from server.cli.options import Command
from server.cli.output import emit_json, say, table
from server.cli.session import Session, pass_session

_COLUMNS = ("id", "kind", "base", "state", "pid", "slots", "restarts", "detail")


@click.command(cls=Command)
@pass_session
def engines(session: Session) -> None:
    """List the engines of the running server.

    With --store, of the server that runs on that store.
    """
    found = session.backend().engines()
    if session.json:
        emit_json(list(found or ()))
    elif found is None:
        say("No server is running on this store. Start one: adapterctl serve --base BASE")
    elif not found:
        say("The server runs no engine.")
    else:
        _say_engines(found)


def _say_engines(found: Sequence[dict[str, Any]]) -> None:
    table(_COLUMNS, [[_cell(engine.get(column)) for column in _COLUMNS] for engine in found])


def _cell(value: object) -> str:
    return "-" if value in (None, "") else str(value)
