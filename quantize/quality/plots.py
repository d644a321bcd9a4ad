"""The report's charts: figures in, SVG out. Colours are classes of the page's style.

What is not finite is not drawn; the table beside each chart says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from quantize.quality.comparing import HISTOGRAM_EDGES
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
    power,
)

# A series' colour is the page's class s0 to s7; the reference is s0 wherever it comes up.
COLOURS = 8
_ROW, _NAMES = 24.0, 210.0
# Lengths that differ by more than this can only be seen on a logarithmic axis.
_LOG_FROM = 25.0
_LAYER = re.compile(r"\.(\d+)\.")
_SHAPES = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Chart:
    """A drawing and its legend: (class of the swatch, name)."""

    svg: str
    legend: tuple[tuple[str, str], ...]


def colour(index: int) -> str:
    """The class of the model `index`: 0 is the reference, candidates follow."""
    return f"s{index if index < COLOURS else 1 + (index - 1) % (COLOURS - 1)}"


@dataclass(frozen=True)
class Spread:
    """One candidate's KL divergences: counts by HISTOGRAM_EDGES, one more than edges."""

    colour: str
    name: str
    counts: Sequence[int]
    mean: float | None


def kl_histogram(text_set: str, series: Sequence[Spread], limit: float | None) -> Chart | None:
    """How often which KL was measured; `limit` is drawn too. None: nothing was counted."""
    bins = [i for spread in series for i, count in enumerate(spread.counts) if count]
    if not bins:
        return None
    first, last = max(0, min(bins) - 1), min(len(HISTOGRAM_EDGES), max(bins) + 1)
    shares = [[100 * c / max(1, sum(s.counts)) for c in s.counts] for s in series]
    canvas = Canvas(
        f"KL divergence on the {text_set} set",
        "Share of next-token predictions by their KL divergence from the reference, "
        + "; ".join(f"{spread.name}: mean {_short(spread.mean)}" for spread in series),
        300,
    )
    bottom = canvas.height - BOTTOM
    up = linear(0, max(map(max, shares)), bottom, TOP, "share of tokens, %")
    canvas.up(up)

    def edge(position: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (position - first) / (last + 1 - first)

    decades = [
        (edge(i + 1), power(round(math.log10(value))))
        for i, value in enumerate(HISTOGRAM_EDGES)
        if i % 4 == 0 and first <= i + 1 <= last + 1
    ]
    places = dict(decades)
    ticks = tuple((x, words) for x, words in places.items())
    canvas.across(
        Axis(lambda x: x, ticks, "KL divergence, nats per token (right is worse)"),
        LEFT,
        TOP,
        bottom,
    )
    for spread, share in zip(series, shares, strict=True):
        points = [f"M{edge(first):.1f} {bottom:.1f}"]
        for i in range(first, last + 1):
            y = up.place(share[i])
            points.append(f"L{edge(i):.1f} {y:.1f}L{edge(i + 1):.1f} {y:.1f}")
        points.append(f"L{edge(last + 1):.1f} {bottom:.1f}")
        canvas.mark("path", spread.name, f"area {spread.colour}", d="".join(points))
    for i in range(first, last + 1):
        told = "; ".join(
            f"{s.name}: {share[i]:.1f} %" for s, share in zip(series, shares, strict=True)
        )
        canvas.mark(
            "rect",
            f"{_between(i)}: {told}",
            "hover",
            x=edge(i),
            y=TOP,
            width=edge(i + 1) - edge(i),
            height=bottom - TOP,
        )
    for spread in series:
        if spread.mean is not None and spread.mean > 0:
            told = f"{spread.name}: mean {_short(spread.mean)}"
            _upright(canvas, edge(_bin_of(spread.mean)), told, f"mean {spread.colour}")
    if limit is not None:
        _upright(canvas, edge(_bin_of(limit)), f"--max-kl {limit:g}", "limit")
    legend = [(spread.colour, spread.name) for spread in series]
    legend.append(("dashed", "mean"))
    return Chart(canvas.svg(), (*legend, *((("dotted", "--max-kl"),) if limit is not None else ())))


def _upright(canvas: Canvas, x: float, tooltip: str, kind: str) -> None:
    x = min(max(x, LEFT), WIDTH - RIGHT)
    canvas.mark("line", tooltip, kind, x1=x, y1=TOP, x2=x, y2=canvas.height - BOTTOM)


def _bin_of(value: float) -> float:
    """Where a value lies, in bins: edge i is the end of bin i."""
    low, step = math.log10(HISTOGRAM_EDGES[0]), math.log10(HISTOGRAM_EDGES[1] / HISTOGRAM_EDGES[0])
    return min(max((math.log10(value) - low) / step + 1, 0.5), len(HISTOGRAM_EDGES) + 0.5)


def _between(index: int) -> str:
    if index == 0:
        return f"below {HISTOGRAM_EDGES[0]:.0e}"
    if index == len(HISTOGRAM_EDGES):
        return f"from {HISTOGRAM_EDGES[-1]:g} on"
    return f"{HISTOGRAM_EDGES[index - 1]:.1e} to {HISTOGRAM_EDGES[index]:.1e}"


def layer_errors(name: str, errors: Sequence[tuple[str, float]]) -> Chart | None:
    """Relative errors of modules by layer; modules of one kind share a colour."""
    drawn = [(module, error) for module, error in errors if math.isfinite(error)]
    if not drawn:
        return None
    layers = [_LAYER.search(f".{module}.") for module, _ in drawn]
    numbered = all(layers)
    places = [int(found[1]) if found else i for i, found in enumerate(layers)]
    if not numbered:
        places = list(range(len(drawn)))
    canvas = Canvas(
        f"Weight error by layer: {name}",
        f"Relative error of {len(drawn)} weight matrices, the largest "
        f"{100 * max(error for _, error in drawn):.2f} %",
        280,
    )
    bottom = canvas.height - BOTTOM
    up = linear(0, 100 * max(error for _, error in drawn), bottom, TOP, "relative error, %")
    words = "layer" if numbered else "matrix, in the order of the file"
    across = linear(0, max(places), LEFT + 12, WIDTH - RIGHT - 12, words)
    whole = tuple(tick for tick in across.ticks if float(tick[0]).is_integer())
    canvas.up(up)
    canvas.across(Axis(across.place, whole, words), LEFT, TOP, bottom)
    kinds = list(dict.fromkeys(_kind(module) for module, _ in drawn))
    for place, (module, error) in zip(places, drawn, strict=True):
        kind = min(kinds.index(_kind(module)), COLOURS - 1)
        canvas.mark(
            "circle",
            f"{module}: {100 * error:.2f} %",
            f"dot s{kind}",
            cx=across.place(place),
            cy=up.place(100 * error),
            r=3.5,
        )
    legend = [(f"s{i}", kind) for i, kind in enumerate(kinds[: COLOURS - 1])]
    if len(kinds) >= COLOURS:
        rest = kinds[COLOURS - 1] if len(kinds) == COLOURS else "others"
        legend.append((f"s{COLOURS - 1}", rest))
    return Chart(canvas.svg(), tuple(legend))


def _kind(module: str) -> str:
    return module.removesuffix(".weight").rsplit(".", 1)[-1]


def perplexities(figures: Mapping[str, Sequence[tuple[str, float | None]]]) -> Chart | None:
    """A bar for each model in each set of texts: (model's name, perplexity), reference first."""
    finite = [p for group in figures.values() for _, p in group if p is not None and p > 0]
    if not finite:
        return None
    rows = sum(len(group) for group in figures.values())
    canvas = Canvas(
        "Perplexity",
        "Perplexity of each model on each set of texts; lower is better",
        TOP + rows * _ROW + len(figures) * (_ROW + 6) + BOTTOM,
    )
    bottom = canvas.height - BOTTOM
    low, high = min(1.0, *finite), max(finite)
    ends = (_NAMES, WIDTH - RIGHT - 84)
    if high / min(finite) > _LOG_FROM:
        axis = logarithmic(low, high, *ends, "perplexity, logarithmic (lower is better)")
    else:
        axis = linear(0, high, *ends, "perplexity (lower is better)")
    canvas.across(axis, _NAMES, TOP, bottom)
    y = TOP
    for text_set, group in figures.items():
        canvas.text(8, y + 18, f"{fitting(text_set, 70)} set", kind="group")
        y += _ROW + 2
        for index, (name, perplexity) in enumerate(group):
            _bar(canvas, axis, y, name, perplexity, colour(index))
            y += _ROW
        y += 4
    return Chart(canvas.svg(), ())


def _bar(
    canvas: Canvas, axis: Axis, y: float, name: str, perplexity: float | None, kind: str
) -> None:
    canvas.text(_NAMES - 8, y + 15, fitting(name), "end", "name")
    start = axis.place(axis.ticks[0][0])
    if perplexity is None or perplexity <= 0:
        canvas.text(start + 6, y + 15, "not finite", kind="value")
        return
    length = max(1.0, axis.place(perplexity) - start)
    canvas.mark(
        "rect",
        f"{name}: {perplexity:.4g}",
        f"bar {kind}",
        x=start,
        y=y + 3,
        width=length,
        height=_ROW - 7,
    )
    canvas.text(start + length + 6, y + 15, f"{perplexity:.4g}", kind="value")


def size_and_quality(
    reference: tuple[str, int], candidates: Sequence[tuple[str, int, Mapping[str, float | None]]]
) -> Chart | None:
    """Bytes on disk against the increase of perplexity: a candidate's name, size, and increases by
    set of texts (a share; None: not finite)."""
    sets = list(dict.fromkeys(s for _, _, increases in candidates for s in increases))
    found = [i for _, _, increases in candidates for i in increases.values() if i is not None]
    if not found:
        return None
    canvas = Canvas(
        "Size against quality",
        "Size on disk and increase of the perplexity over the reference's; best is bottom left",
        320,
    )
    bottom = canvas.height - BOTTOM
    unit, scale = unit_of(max(reference[1], *(size for _, size, _ in candidates)))
    largest = max(reference[1], *(size for _, size, _ in candidates)) / scale
    across = linear(0, largest, LEFT, WIDTH - RIGHT - 12, f"size on disk, {unit}")
    ratios = [1.0, *(1 + i for i in found)]
    if max(ratios) > _LOG_FROM:
        up = logarithmic(
            max(min(ratios), 1e-9),
            max(ratios),
            bottom - 8,
            TOP + 8,
            "perplexity, times the reference's",
        )
        place = up.place
    else:
        up = linear(
            min(0.0, 100 * min(found)),
            max(1.0, 100 * max(found)),
            bottom - 8,
            TOP + 8,
            "more perplexity, %",
        )
        percent = up.place

        def place(ratio: float) -> float:
            return percent(100 * (ratio - 1))

    canvas.up(up)
    canvas.across(across, LEFT, TOP, bottom)
    told = f"{reference[0]}: {reference[1] / scale:.4g} {unit}, the reference"
    x, y = across.place(reference[1] / scale), place(1.0)
    # A ring, so that what is as large and as good is seen within.
    canvas.mark("circle", told, "ring", cx=x, cy=y, r=11)
    for index, (name, size, increases) in enumerate(candidates, 1):
        for text_set, increase in increases.items():
            if increase is not None:
                told = f"{name}: {size / scale:.4g} {unit}, {100 * increase:+.1f} % ({text_set})"
                shape = _SHAPES[sets.index(text_set) % len(_SHAPES)]
                x, y = across.place(size / scale), place(1 + increase)
                _shape(canvas, x, y, shape, told, colour(index))
    legend = [("ring", f"{reference[0]} (reference)")]
    legend += [(colour(i), name) for i, (name, _, _) in enumerate(candidates, 1)]
    legend += [(_SHAPES[i % len(_SHAPES)], f"{text_set} set") for i, text_set in enumerate(sets)]
    return Chart(canvas.svg(), tuple(legend))


def _shape(canvas: Canvas, x: float, y: float, shape: str, tooltip: str, kind: str) -> None:
    r = 6.0
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "diamond": [(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)],
        "triangle": [(0, -r - 1), (r + 1, r), (-r - 1, r)],
    }
    if shape == "circle":
        canvas.mark("circle", tooltip, f"dot {kind}", cx=x, cy=y, r=r)
        return
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
    canvas.mark("polygon", tooltip, f"dot {kind}", points=points)


def unit_of(size: float) -> tuple[str, float]:
    """In which unit a size reads well, and its bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return unit, scale
    return "bytes", 1.0


def fitting(name: str, letters: int = 26) -> str:
    """As much of a name as has room; the letters of some scripts are as wide as two."""
    if _width(name) <= letters:
        return name
    kept = name
    while _width(kept) > letters - 1:
        kept = kept[:-1]
    return f"{kept}…"


def _width(name: str) -> int:
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in name)


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
