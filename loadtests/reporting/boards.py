"""A dashboard's panels with their data as one SVG: what Grafana would show, for documentation."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from deploy.grafana.asking import Series, Shown
from deploy.grafana.panels import Board, Panel

# User units: a cell of Grafana's grid of 24 columns, and the room between panels.
_CELL, _ROW, _GAP = 50.0, 26.0, 6.0
_TALL, _FLAT, _TITLE = 7, 4, 1
_COLOURS = ("#3274d9", "#e0752d", "#299c46", "#a352cc", "#c4162a", "#0e8a8a", "#b8860b", "#777777")
_MOST_NAMES = 5
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#33363b}.title{font-weight:600;font-size:12px}"
    ".row{font-weight:600;font-size:14px}.small{font-size:9.5px;fill:#6b6f76}"
    ".number{font-size:24px;font-weight:600;fill:#299c46}.panel{fill:#fff;stroke:#d5d8dd}"
    ".grid{stroke:#e8eaed}.line{fill:none;stroke-width:1.3}"
)


def drawn(board: Board, answers: Sequence[Shown]) -> str:
    """The whole dashboard, its panels in their places; `answers` as `asking.shown` gives them."""
    found: dict[str, list[Shown]] = {}
    for one in answers:
        if one.board is board:
            found.setdefault(one.panel.title, []).append(one)
    root = Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    SubElement(root, "title").text = board.title
    SubElement(root, "style").text = _STYLE
    SubElement(root, "rect", width="100%", height="100%", fill="#f4f5f7")
    y = _GAP
    for title, panels in board.rows:
        _text(root, _GAP, y + 18, title, "row")
        y = _panels(root, y + _TITLE * _ROW, panels, found)
    root.set("viewBox", f"0 0 {24 * _CELL:g} {y:g}")
    return tostring(root, encoding="unicode") + "\n"


def _panels(
    root: Element, y: float, panels: Sequence[Panel], found: dict[str, list[Shown]]
) -> float:
    x, high = 0, 0.0
    for panel in panels:
        if x + panel.width > 24:
            x, y = 0, y + high
        high = (_FLAT if panel.kind == "number" else _TALL) * _ROW
        place = SubElement(root, "g", transform=f"translate({x * _CELL:g} {y:g})")
        _panel(place, panel, found.get(panel.title, []), panel.width * _CELL, high)
        x += panel.width
    return y + high


def _panel(g: Element, panel: Panel, answers: Sequence[Shown], width: float, high: float) -> None:
    box = {"x": "3", "y": "3", "width": f"{width - _GAP:g}", "height": f"{high - _GAP:g}"}
    SubElement(g, "rect", {**box, "rx": "2", "class": "panel"})
    _text(g, 12, 20, panel.title, "title")
    series = [one for answer in answers for one in answer.series if one.points]
    if not series:
        _text(g, width / 2 - 24, high / 2, "no data", "small")
    elif panel.kind == "number":
        _text(g, 12, high - 26, _said(series[0].points[-1][1], panel.unit), "number")
        _curves(g, series[:1], width * 0.55, width - 14, 30, high - 18, panel.unit, axis=False)
    elif panel.kind in ("bars", "table"):
        _bars(g, panel, series, width, high)
    else:
        shown = _stacked(series) if panel.kind == "stack" else series
        _curves(g, shown, 62, width - 16, 32, high - 42, panel.unit)
        _legend(g, series, width, high)


def _bars(g: Element, panel: Panel, series: Sequence[Series], width: float, high: float) -> None:
    rows = min(len(series), int((high - 40) // 17))
    top = max(abs(one.points[-1][1]) for one in series[:rows]) or 1.0
    for number, one in enumerate(series[:rows]):
        y = 34 + number * 17
        value = one.points[-1][1]
        _text(g, 12, y + 10, _short(one.name, int(width * 0.09)), "small")
        left, room = width * 0.55, width * 0.45 - 84
        long = max(1.0, room * abs(value) / top)
        bar = {"x": f"{left:g}", "y": f"{y:g}", "width": f"{long:g}", "height": "12"}
        SubElement(g, "rect", {**bar, "fill": _COLOURS[0], "opacity": "0.75"})
        _text(g, left + long + 5, y + 10, _said(value, panel.unit), "small")


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Each on top of those before it, at the times that any has; gone ones count as none."""
    times = sorted({at for one in series for at, _ in one.points})
    sums = dict.fromkeys(times, 0.0)
    made = []
    for one in series:
        for at, value in one.points:
            sums[at] += value
        made.append(Series(one.name, sorted(sums.items())))
    return made


def _curves(
    g: Element,
    series: Sequence[Series],
    left: float,
    right: float,
    top: float,
    bottom: float,
    unit: str,
    *,
    axis: bool = True,
) -> None:
    begin = min(one.points[0][0] for one in series)
    end = max(*(one.points[-1][0] for one in series), begin + 1)
    most = max(value for one in series for _, value in one.points) or 1.0
    if axis:
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * (bottom - top)
            ends = {"x1": f"{left:g}", "x2": f"{right:g}", "y1": f"{y:g}", "y2": f"{y:g}"}
            SubElement(g, "line", {**ends, "class": "grid"})
            _text(g, left - 4, y + 3, _said(share * most, unit), "small", "end")
    for number, one in enumerate(series):
        parts, last = [], -1e9
        for at, value in one.points:
            x = left + (right - left) * (at - begin) / (end - begin)
            # A gap is one: the series was not there.
            move = "M" if at - last > (end - begin) / 20 else "L"
            parts.append(f"{move}{x:.1f} {bottom - (bottom - top) * value / most:.1f}")
            last = at
        colour = _COLOURS[number % len(_COLOURS)]
        SubElement(g, "path", {"d": "".join(parts), "class": "line", "stroke": colour})


def _legend(g: Element, series: Sequence[Series], width: float, high: float) -> None:
    names = [one.name for one in series]
    shown = names[:_MOST_NAMES]
    room = (width - 24) / max(1, len(shown))
    for number, name in enumerate(shown):
        x = 12 + number * room
        colour = _COLOURS[number % len(_COLOURS)]
        mark = {"x": f"{x:g}", "y": f"{high - 24:g}", "width": "9", "height": "3"}
        SubElement(g, "rect", {**mark, "fill": colour})
        more = f" +{len(names) - _MOST_NAMES}" if number == _MOST_NAMES - 1 < len(names) - 1 else ""
        _text(g, x + 12, high - 19, _short(name, int((room - 14) / 5.2)) + more, "small")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def _said(value: float, unit: str) -> str:
    """A value with its unit, as short as it can be read."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return f"{value / 2**30:.3g} GiB" if value >= 2**29 else f"{value / 2**20:.3g} MiB"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.4g}" + {"reqps": " /s", "ops": " /s"}.get(unit, "")


def _text(g: Element, x: float, y: float, words: str, kind: str, anchor: str = "start") -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "class": kind, "text-anchor": anchor}
    SubElement(g, "text", place).text = words
