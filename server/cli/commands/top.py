"""top, advice and residency: what the running server serves and holds."""

from __future__ import annotations

import time

import click

from adapters.errors import ServerUnreachable
from server.cli.options import Command
from server.cli.output import clean, emit_json, say, short_digest, table
from server.cli.screen import Screen, on_terminal
from server.cli.session import Session, pass_session
from server.cli.top_view import advice_lines, duration, top_lines
from server.gateway.lane_models import ResidencyDocument, ResidentAdapter

_WINDOWS = {"1m": 60.0, "15m": 900.0}


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="Print it once, also on a terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often the screen is drawn again.",
)
@click.option(
    "--window",
    type=click.Choice(["1m", "15m"]),
    default="1m",
    show_default=True,
    help="Of how long ago it tells.",
)
@click.option(
    "--rows",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="At most so many versions, those with the most traffic.",
)
@pass_session
def top(session: Session, once: bool, interval: float, window: str, rows: int) -> None:
    """Show who is asked how much, where and how fast: adapters by traffic, engines, advice.

    On a terminal it is drawn again until q or Ctrl-C; in a pipe, with --once or --json it is
    printed once. A server has to run.
    """
    backend = session.backend()
    seconds = _WINDOWS[window]
    found = backend.top(seconds, rows)
    if session.json:
        emit_json(found.model_dump(mode="json"))
        return
    if once or not on_terminal():
        for line in top_lines(found):
            say(line)
        return
    with Screen() as screen:
        trouble = ""
        while True:
            screen.draw(top_lines(found, trouble=trouble))
            if screen.quit_within(interval):
                return
            try:
                found, trouble = backend.top(seconds, rows), ""
            except ServerUnreachable as error:
                # It is started again, perhaps: what was seen last stays.
                trouble = f"since {time.strftime('%H:%M:%S')}: {error.message}"


@click.command(cls=Command)
@pass_session
def advice(session: Session) -> None:
    """Say which versions should change their lane, by the traffic the server has measured."""
    found = session.backend().advice()
    if session.json:
        emit_json([it.model_dump(mode="json") for it in found])
    elif not found:
        say("Nothing to advise: by what was measured, every version is where it belongs.")
    else:
        for line in advice_lines(found):
            say(line)


@click.command(cls=Command)
@pass_session
def residency(session: Session) -> None:
    """List what the engine holds: in its slots and in its CPU cache, as it says itself."""
    found = session.backend().residency()
    if session.json:
        emit_json([it.model_dump(mode="json") for it in found])
        return
    for document in found:
        table(("place", "version", "digest", "pinned"), _rows(document))
        say(_counts(document))


def _counts(document: ResidencyDocument) -> str:
    who = clean(document.base) or "In all"
    return (
        f"{who}, since the engine's start: read from disk {document.loads} times"
        f"{_each(document.loads, document.load_seconds)}, "
        f"{document.overlapped} of them while others were answered, "
        f"into a slot {document.swaps} times"
        f"{_each(document.swaps, document.swap_seconds)}, thrown out {document.evictions} times"
    )


def _each(count: int, seconds: float) -> str:
    return f" ({duration(seconds / count)} each)" if count else ""


def _rows(document: ResidencyDocument) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (f"slot {number}", *(("free", "-", "-") if held is None else _held(held)))
        for number, held in enumerate(document.slots)
    ]
    in_slots = {held.digest for held in document.slots if held is not None}
    rows += [("cpu", *_held(it)) for it in document.cpu if it.digest not in in_slots]
    return rows


def _held(held: ResidentAdapter) -> tuple[str, str, str]:
    return held.reference or "-", short_digest(held.digest), "yes" if held.pinned else "-"
