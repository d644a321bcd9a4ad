"""A full screen that is drawn again and again, by the codes every terminal knows (ECMA-48)."""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
import unicodedata
from types import TracebackType
from typing import Any

# xterm's other screen: what was on the terminal before is there again afterwards.
_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_TO_END_OF_LINE = "\x1b[K"
_TO_END_OF_SCREEN = "\x1b[J"


def on_terminal() -> bool:
    """Whether a screen can be drawn on stdout."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """The terminal while it shows one picture; left as it was, whatever happens. q ends it.

    Ctrl-C ends it like q: nothing that was begun is broken off.
    """

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Screen:
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        return kind is KeyboardInterrupt

    def draw(self, lines: list[str]) -> None:
        """Replaces the picture; what does not fit on the screen is not shown."""
        columns, rows = shutil.get_terminal_size()
        shown = [fitting(line, columns) + _TO_END_OF_LINE for line in lines[:rows]]
        sys.stdout.write(_HOME + "\n".join(shown) + _TO_END_OF_SCREEN)
        sys.stdout.flush()

    def quit_within(self, seconds: float) -> bool:
        """Waits so long; whether q was pressed, or nobody is there to press it any more."""
        if self._before is None:
            time.sleep(seconds)
            return False
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0]:
                key = os.read(sys.stdin.fileno(), 1)
                if key in (b"q", b"Q", b""):
                    return True
        return False


def fitting(line: str, columns: int) -> str:
    """The beginning of a line that fits; its colours, which take no room, are kept."""
    kept, width, position = [], 0, 0
    while position < len(line):
        if line[position] == "\x1b":
            end = line.index("m", position) + 1
            kept.append(line[position:end])
            position = end
            continue
        wide = 2 if unicodedata.east_asian_width(line[position]) in "WF" else 1
        if width + wide <= columns:
            kept.append(line[position])
        width += wide
        position += 1
    return "".join(kept)
