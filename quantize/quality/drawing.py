"""SVG as far as the report's charts need it: a canvas, and axes with round numbers.

A chart has a title and a description for screen readers, axes with units, and a tooltip (<title>)
at every mark. Lengths are user units of a canvas WIDTH wide, which the page scales. Coordinates
stay within the canvas whatever the figures are; what is not finite is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 760.0
# Of a broken model a figure can be anything; beyond this it is drawn at the edge.
_LARGEST = 1e300
LEFT, RIGHT, TOP, BOTTOM = 80.0, 16.0, 14.0, 48.0


@dataclass(frozen=True)
class Axis:
    """Where values lie: `place` gives a coordinate; `ticks` are values with what is written."""

    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]
    label: str


def linear(low: float, high: float, start: float, end: float, label: str) -> Axis:
    """An axis between the round numbers that enclose `low` and `high`."""
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    step = _step(high - low)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple((i * step, f"{i * step:.6g}") for i in range(first, last + 1))

    def place(value: float) -> float:
        return start + (end - start) * _share((value / step - first) / (last - first))

    return Axis(place, ticks, label)


def logarithmic(low: float, high: float, start: float, end: float, label: str) -> Axis:
    """An axis over whole decades, `low` > 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    every = max(1, (last - first) // 8)
    ticks = tuple((10.0**e, power(e)) for e in range(first, last + 1, every))

    def place(value: float) -> float:
        return start + (end - start) * _share((math.log10(value) - first) / (last - first))

    return Axis(place, ticks, label)


def _share(part: float) -> float:
    return min(1.0, max(0.0, part))


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten: four to ten of them make the span."""
    if not (math.isfinite(span) and span > 1e-300):
        return 1.0
    rough = span / 5
    power_of_ten = 10.0 ** math.floor(math.log10(rough))
    return next(m * power_of_ten for m in (1, 2, 5, 10) if m * power_of_ten >= rough * 0.999)


def power(exponent: int) -> str:
    """10 to the power of `exponent`, as people write it."""
    if -3 <= exponent <= 4:
        return f"{10.0**exponent:g}"
    return "10" + "".join("⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".index(c)] for c in str(exponent))


def printable(text: str) -> str:
    """`text` with what no page may hold replaced by U+FFFD: control characters, lone surrogates."""
    return "".join(
        "\ufffd"
        if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff"
        else c
        for c in text
    )


class Canvas:
    """An SVG under construction."""

    def __init__(self, title: str, description: str, height: float) -> None:
        self.height = height
        self.root = Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            role="img",
            viewBox=f"0 0 {WIDTH:g} {height:g}",
        )
        SubElement(self.root, "title").text = printable(title)
        SubElement(self.root, "desc").text = printable(description)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
        """A straight line; `kind` is its class."""
        ends = {"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2)}
        return SubElement(self.root, "line", {**ends, "class": kind})

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", kind: str = ""
    ) -> Element:
        """Words with their base line at y."""
        place = {"x": _n(x), "y": _n(y), "text-anchor": anchor, "class": kind}
        element = SubElement(self.root, "text", place)
        element.text = printable(words)
        return element

    def mark(self, tag: str, tooltip: str, kind: str, **attributes: float | str) -> Element:
        """A shape with its tooltip."""
        given = {k: v if isinstance(v, str) else _n(v) for k, v in attributes.items()}
        element = SubElement(self.root, tag, {**given, "class": kind})
        SubElement(element, "title").text = printable(tooltip)
        return element

    def across(self, axis: Axis, left: float, top: float, bottom: float) -> None:
        """The horizontal axis at the bottom, from `left` on, with a grid up to `top`."""
        for value, words in axis.ticks:
            x = axis.place(value)
            self.line(x, top, x, bottom, "grid")
            self.text(x, bottom + 16, words, "middle", "tick")
        self.line(left, bottom, WIDTH - RIGHT, bottom, "axis")
        self.text((left + WIDTH - RIGHT) / 2, bottom + 38, axis.label, "middle", "label")

    def up(self, axis: Axis) -> None:
        """The vertical axis at the left, with a grid to the right."""
        for value, words in axis.ticks:
            y = axis.place(value)
            self.line(LEFT, y, WIDTH - RIGHT, y, "grid")
            self.text(LEFT - 6, y + 4, words, "end", "tick")
        middle = (axis.place(axis.ticks[0][0]) + axis.place(axis.ticks[-1][0])) / 2
        label = self.text(14, middle, axis.label, "middle", "label")
        label.set("transform", f"rotate(-90 14 {_n(middle)})")

    def svg(self) -> str:
        """The whole, as text."""
        return tostring(self.root, encoding="unicode")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
