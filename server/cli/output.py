"""What goes to the terminal: tables, key-value blocks, JSON, progress.

Everything that comes from a file or from another machine passes through `clean`, so a name in
an artifact can never move the cursor or recolour the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TextIO

import click

# Hex digits of a short digest; references take 8 or more.
SHORT_DIGEST = 12
PLAIN_INTERVAL_S = 1.0


class OutputFailed(Exception):
    """stdout cannot be written: a full disk behind it, a terminal that is gone."""


def say(text: str) -> None:
    """A line for people on stdout."""
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"cannot write the output: {error.strerror}") from None


def emit_json(document: Any) -> None:
    """The one JSON document of a command, on stdout."""
    say(json.dumps(document, ensure_ascii=False, indent=2))


def clean(text: str) -> str:
    """`text` with control and formatting characters made visible (`\\x1b`), newlines included."""
    if text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str) -> str:
    """`text` as one printable line."""
    return clean(" ".join(text.split()))


def coloured(stream: TextIO) -> bool:
    """Colour is for terminals, and never when NO_COLOR is set (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def style(text: str, **how: Any) -> str:
    """`text` in colour if stdout takes it."""
    return click.style(text, **how) if coloured(sys.stdout) else text


def short_digest(digest: str) -> str:
    """`sha256:0123456789ab`: enough to paste back as `NAME@...`."""
    algorithm, colon, value = digest.partition(":")
    return f"{algorithm}{colon}{value[:SHORT_DIGEST]}"


def local_time(moment: datetime) -> str:
    """ISO 8601 in this machine's time zone, to the second."""
    return moment.astimezone().isoformat(timespec="seconds")


def size(count: int) -> str:
    """Bytes for people: 921 B, 1.4 MiB."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def lane_text(lane: str, *, approximate: bool) -> str:
    """How a version is served; never without the word when it only comes near what was trained."""
    return f"{lane}, approximate" if approximate else lane


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns aligned by spaces, no borders; the last column is not padded."""
    for line in table_lines(headers, rows):
        say(line)


def table_lines(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, the first of them its headers."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [
        max(_width(row[column]) for row in [list(headers), *cells])
        for column in range(len(headers))
    ]
    head = style(_line([h.upper() for h in headers], widths), bold=True)
    return [head, *(_line(row, widths) for row in cells)]


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """`name  value`, one a line, values aligned."""
    shown = [(name, clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        say(f"{style(name.ljust(width), bold=True)}  {value}".rstrip())


def note(text: str) -> None:
    """A line for people on stderr: progress, warnings; never part of the answer."""
    click.echo(text, err=True)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Columns on a terminal: East Asian wide characters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


class Progress:
    """What a long command says while it works.

    A bar on a terminal; with a pipe in its place one plain line a step, and while it goes on one
    for each new percentage, a second apart at least. Quiet when a script asked for JSON and stderr
    is no terminal.
    """

    def __init__(self, stream: TextIO, *, json_mode: bool) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._silent = json_mode and not self._terminal
        self._bar: Any = None
        self._label = ""
        self._spoke = 0.0
        self._percentage = -1

    def step(self, text: str) -> None:
        """A new step has begun."""
        self._finish_bar()
        self._label = one_line(text)
        self._spoke, self._percentage = time.monotonic(), -1
        if not self._silent:
            click.echo(self._label, file=self._stream)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` parts of the present step are finished."""
        if self._silent or total <= 0:
            return
        if self._terminal:
            self._draw(done, total)
            return
        now = time.monotonic()
        percentage = done * 100 // total
        if now - self._spoke >= PLAIN_INTERVAL_S and percentage != self._percentage:
            self._spoke, self._percentage = now, percentage
            click.echo(f"{self._label}: {percentage} %", file=self._stream)

    def close(self) -> None:
        """Leave the terminal clean."""
        self._finish_bar()

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f} % |{bar}| {elapsed}<{remaining}",
            )
        self._bar.total = total
        # Draws ten times a second at most, however often it is told.
        self._bar.update(done - self._bar.n)

    def _finish_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress(*, json_mode: bool) -> Iterator[Progress]:
    """A Progress on stderr that is taken off the terminal at the end, whatever happened."""
    shown = Progress(sys.stderr, json_mode=json_mode)
    try:
        yield shown
    finally:
        shown.close()
