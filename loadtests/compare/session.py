"""One run of the comparison: how much, where, and what it says meanwhile."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Session:
    """`rounds` are those of table A; the scheduling's are minutes each, so `loads` are fewer."""

    folder: Path
    quick: bool
    rounds: int
    loads: int
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """A line of progress with the minutes and seconds since the start."""
        seconds = round(time.monotonic() - self.began)
        print(f"[{seconds // 60:2}:{seconds % 60:02}] {text}", flush=True)

    @property
    def tokens(self) -> int:
        """Output tokens of each decode stream."""
        return 32 if self.quick else 96

    def place(self, name: str) -> Path:
        """A directory of its own for a part."""
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def sized(folder: Path, *, quick: bool) -> Session:
    """The run as `make bench` does it, or one that only shows that all of it works."""
    return Session(folder, quick, rounds=2 if quick else 5, loads=1 if quick else 3)
