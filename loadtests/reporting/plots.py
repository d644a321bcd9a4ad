"""The report's charts: figures in, SVG out, in the quality report's style (quantize/quality)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantize.quality.drawing import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Canvas,
    linear,
    logarithmic,
)
from quantize.quality.plots import Chart, colour, fitting

# Values that differ by more than this can only be seen on a logarithmic axis.
_LOG_FROM = 25.0
_ROW, _NAMES = 22.0, 210.0
# A curve through more points than this looks the same.
_POINTS = 120
_SMALLEST = 1e-3


@dataclass(frozen=True)
class Line:
    """One curve over time: (seconds from the start, value); None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Marks:
    """What a chart over time shows behind its curves, in seconds from the start."""

    end: float
    warmup: float
    begins: Mapping[str, float]


def distribution(title: str, label: str, values: Mapping[str, Sequence[float]]) -> Chart | None:
    """Which share of each series' values (milliseconds) is at most how large."""
    # A series without values keeps its colour: it is another chart's, too.
    series = [
        (name, colour(index), np.sort(np.asarray(found, dtype=float)))
        for index, (name, found) in enumerate(values.items(), 1)
        if len(found)
    ]
    if not series:
        return None
    low = max(_SMALLEST, min(float(found[0]) for _, _, found in series))
    high = max(low, *(float(found[-1]) for _, _, found in series))
    canvas = Canvas(title, f"Share of the measured values at or below a duration: {label}", 300)
    bottom = canvas.height - BOTTOM
    up = linear(0, 100, bottom, TOP, "share of the values, %")
    across = _scale(low, high, LEFT, WIDTH - RIGHT - 8, label)
    canvas.up(up)
    canvas.across(across, LEFT, TOP, bottom)
    for name, kind, found in series:
        shares = np.unique(np.linspace(0, 100, min(_POINTS, len(found) + 1)))
        points = [
            (across.place(max(_SMALLEST, float(v))), up.place(float(share)))
            for share, v in zip(shares, np.percentile(found, shares), strict=True)
        ]
        canvas.mark("path", name, f"line {kind}", d=_path(points))
        for share in (50, 90, 99):
            value = float(np.percentile(found, share))
            canvas.mark(
                "circle",
                f"{name}: {share} % at most {value:.4g} ms",
                f"dot {kind}",
                cx=across.place(max(_SMALLEST, value)),
                cy=up.place(share),
                r=4,
            )
    return Chart(canvas.svg(), tuple((kind, name) for name, kind, _ in series))


def over_time(title: str, label: str, lines: Sequence[Line], marks: Marks) -> Chart | None:
    """Curves over the run, the warm-up shaded, the beginning of each later tenant marked."""
    values = [v for line in lines for _, v in line.points if v is not None]
    if not values:
        return None
    canvas = Canvas(title, f"{label} over the run; the warm-up is shaded", 280)
    bottom = canvas.height - BOTTOM
    positive = [v for v in values if v > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) > _LOG_FROM:
        up = logarithmic(min(positive), max(positive), bottom, TOP, f"{label}, logarithmic")
    else:
        up = linear(0, max(values), bottom, TOP, label)
    across = linear(0, marks.end, LEFT, WIDTH - RIGHT - 12, "seconds from the start")
    if marks.warmup > 0:
        x = across.place(marks.warmup)
        canvas.mark(
            "rect",
            "warm-up, not measured",
            "shade",
            x=LEFT,
            y=TOP,
            width=x - LEFT,
            height=bottom - TOP,
        )
    canvas.up(up)
    canvas.across(across, LEFT, TOP, bottom)
    for name, begin in marks.begins.items():
        x = across.place(begin)
        told = f"{name} begins"
        canvas.mark("line", told, "mean begin", x1=x, y1=TOP, x2=x, y2=bottom)
    for index, line in enumerate(lines, 1):
        _curve(canvas, across, up, line, colour(index))
    legend = [(colour(i), line.name) for i, line in enumerate(lines, 1) if line.points]
    if marks.begins:
        legend.append(("dashed", f"{', '.join(marks.begins)} begins"))
    return Chart(canvas.svg(), tuple(legend))


def _curve(canvas: Canvas, across: Axis, up: Axis, line: Line, kind: str) -> None:
    run: list[tuple[float, float]] = []
    for time, value in [*line.points, (0.0, None)]:
        if value is not None:
            run.append((across.place(time), up.place(value)))
        elif run:
            canvas.mark("path", line.name, f"line {kind}", d=_path(run))
            run = []
    for time, value in line.points:
        if value is not None:
            canvas.mark(
                "circle",
                f"{line.name}, {time:.0f} s: {value:.4g}",
                f"dot {kind}",
                cx=across.place(time),
                cy=up.place(value),
                r=2.5,
            )


def ranges(title: str, label: str, rows: Sequence[tuple[str, float, float, float]]) -> Chart | None:
    """A row for each group: (name, p50, p90, p99), in milliseconds, as dots on one line."""
    if not rows:
        return None
    canvas = Canvas(title, f"{label} of each: median, 90th and 99th percentile", _height(len(rows)))
    bottom = canvas.height - BOTTOM
    low = max(_SMALLEST, min(p50 for _, p50, _, _ in rows))
    high = max(low, *(p99 for _, _, _, p99 in rows))
    axis = _scale(low, high, _NAMES, WIDTH - RIGHT - 12, label)
    canvas.across(axis, _NAMES, TOP, bottom)
    for number, (name, *found) in enumerate(rows):
        y = TOP + number * _ROW + _ROW / 2
        canvas.text(_NAMES - 12, y + 4, fitting(name), "end", "name")
        places = [axis.place(max(_SMALLEST, value)) for value in found]
        canvas.line(places[0], y, places[-1], y, "axis")
        for index, (what, value, x) in enumerate(
            zip(("p50", "p90", "p99"), found, places, strict=True), 1
        ):
            told = f"{name}: {what} {value:.4g} ms"
            canvas.mark("circle", told, f"dot {colour(index)}", cx=x, cy=y, r=4.5)
    legend = tuple((colour(i), what) for i, what in enumerate(("p50", "p90", "p99"), 1))
    return Chart(canvas.svg(), legend)


def bars(title: str, label: str, rows: Sequence[tuple[str, float]]) -> Chart | None:
    """A bar for each group: (name, value)."""
    if not rows:
        return None
    canvas = Canvas(title, f"{label} of each", _height(len(rows)))
    bottom = canvas.height - BOTTOM
    axis = linear(0, max(_SMALLEST, *(v for _, v in rows)), _NAMES, WIDTH - RIGHT - 70, label)
    canvas.across(axis, _NAMES, TOP, bottom)
    for number, (name, value) in enumerate(rows):
        y = TOP + number * _ROW
        canvas.text(_NAMES - 12, y + 15, fitting(name), "end", "name")
        width = max(1.0, axis.place(value) - _NAMES)
        told = f"{name}: {value:.4g}"
        canvas.mark("rect", told, "bar s1", x=_NAMES, y=y + 3, width=width, height=_ROW - 7)
        canvas.text(_NAMES + width + 6, y + 15, f"{value:.4g}", kind="value")
    return Chart(canvas.svg(), ())


def _scale(low: float, high: float, start: float, end: float, label: str) -> Axis:
    if high / low > _LOG_FROM:
        return logarithmic(low, high, start, end, f"{label}, logarithmic")
    return linear(0, high, start, end, label)


def _height(rows: int) -> float:
    return TOP + rows * _ROW + 6 + BOTTOM


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
