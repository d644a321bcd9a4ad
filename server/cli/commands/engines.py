"""engines: what the running server runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from server.cli.options import Command
from server.cli.output import emit_json, say, size, table
from server.cli.session import Session, pass_session
from server.cli.top_view import duration

_COLUMNS = (
    *("id", "kind", "model", "lane", "state", "pid", "slots", "memory", "active", "idle"),
    *("restarts", "detail"),
)


@click.command(cls=Command)
@pass_session
def engines(session: Session) -> None:
    """List the engines of the running server: the base's, and those of the merged lane.

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
    table(_COLUMNS, [_cells(engine) for engine in found])
    # Chosen for the machine, not for the model: the same for every engine of a server.
    for line in dict.fromkeys(str(engine.get("computes") or "") for engine in found):
        if line:
            say(f"Each computes with {line}.")


def _cells(engine: dict[str, Any]) -> list[str]:
    memory, idle = engine.get("memory_bytes"), engine.get("idle")
    shown = {
        **engine,
        "model": engine.get("name") or engine.get("base"),
        # The base's own engine says nothing of lanes: it is the hot one.
        "lane": engine.get("lane") or "hot",
        "memory": None if memory is None else size(int(memory)),
        "active": engine.get("in_flight"),
        "idle": None if idle is None else duration(float(idle)),
        # An engine's last lines are in the JSON.
        "detail": str(engine.get("detail") or "").strip().partition("\n")[0],
    }
    return [_cell(shown.get(column)) for column in _COLUMNS]


def _cell(value: object) -> str:
    return "-" if value in (None, "") else str(value)
