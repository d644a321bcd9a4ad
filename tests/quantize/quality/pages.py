"""Reads a report's page strictly: tags nest, drawings stay on their canvas."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr"}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ACROSS, _DOWN = ("x", "x1", "x2", "cx"), ("y", "y1", "y2", "cy")
# What a letter takes at most of a canvas' units, at the sizes of the style sheet.
_LETTER = 7.5


class Page(HTMLParser):
    """`text`: everything that is shown, in order; `outside`: what is drawn beside a canvas."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.shown: list[str] = []
        self.cells: list[str] = []
        self.outside: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._canvas = (0.0, 0.0)
        self._text_at: tuple[float, str] | None = None
        self.feed(html)
        self.close()
        assert self.open == [], "every tag is closed"

    @property
    def text(self) -> str:
        return "".join(self.shown)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += given.items()
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "svg":
            width, height = given["viewbox"].split()[2:]
            self._canvas = (float(width), float(height))
        elif "svg" in self.open:
            self._check(tag, given)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
            self.open.pop()
        self._text_at = None

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.shown.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.cells[-1] += data
        if self._text_at is not None:
            x, anchor = self._text_at
            length = len(data) * _LETTER
            start = x - {"start": 0.0, "middle": length / 2, "end": length}[anchor]
            self._inside(f"text {data!r}", start, start + length, down=False)

    def _check(self, tag: str, given: dict[str, str]) -> None:
        for name in _ACROSS:
            if name in given:
                x, r = float(given[name]), float(given.get("r", 0))
                self._inside(tag, x - r, x + r + float(given.get("width", 0)), down=False)
        for name in _DOWN:
            if name in given:
                y, r = float(given[name]), float(given.get("r", 0))
                self._inside(tag, y - r, y + r + float(given.get("height", 0)), down=True)
        numbers = [float(n) for n in _NUMBER.findall(given.get("d", "") + given.get("points", ""))]
        for x, y in zip(numbers[::2], numbers[1::2], strict=True):
            self._inside(tag, x, x, down=False)
            self._inside(tag, y, y, down=True)
        if tag == "text" and "transform" not in given:
            self._text_at = (float(given["x"]), given["text-anchor"])

    def _inside(self, what: str, start: float, end: float, *, down: bool) -> None:
        if not (0 <= start <= end <= self._canvas[down]):
            self.outside.append(f"{what} {start} to {end} of {self._canvas[down]}")
