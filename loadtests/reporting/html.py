"""report.html: one file with everything in it, to be read without a network and without scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from jinja2 import Environment

from loadtests.load.records import Record
from loadtests.reporting import plots
from loadtests.reporting.figures import Window
from loadtests.reporting.summary import Figures, Summary
from quantize.quality.pages import pages
from quantize.quality.plots import Chart

# More series than colours, or more rows than a screen, show nothing; the tables have them all.
_SERIES = 7
_ROWS = 24
_BINS = 60
_TABLE = 200


def render(summary: Summary, records: Sequence[Record]) -> str:
    """The page. Whatever a server or a name brought into it is text."""
    marks = plots.Marks(
        end=max([summary.end, *(r.end for r in records)]),
        warmup=summary.begin,
        begins={t.name: t.begin for t in summary.scenario.askers if t.begin > 0},
    )
    good = [r for r in records if r.ok and not r.warmup]
    # In the scenario's order everywhere, so that a tenant has one colour.
    tenants = [tenant.name for tenant in summary.scenario.askers][:_SERIES]
    return (
        _environment()
        .get_template("loadtest.html.j2")
        .render(
            summary=summary,
            first_tokens=_first_tokens(good, tenants),
            gaps=_gaps(good, tenants),
            throughput=_throughput(records, marks, tenants),
            percentiles=_percentiles(records, marks),
            tenants_over_time=_tenants_over_time(records, marks, tenants),
            failures=_failures(records, marks),
            adapters=_adapters(summary),
            adapter_rates=_adapter_rates(summary),
            tenants=_ranges("Time to first token by tenant", summary.by_tenant),
            adapter_rows=list(summary.by_adapter.items())[:_TABLE],
            left_out=max(0, len(summary.by_adapter) - _TABLE),
            drawn_adapters=min(_ROWS, len(summary.by_adapter)),
        )
    )


@cache
def _environment() -> Environment:
    environment = pages(Path(__file__).with_name("templates"))
    environment.filters |= {"ms": ms, "number": number, "ratio": ratio}
    return environment


def ms(value: float | None) -> str:
    """Milliseconds as people read them."""
    if value is None or not math.isfinite(value):
        return "–"
    if value >= 9_999.5:
        return f"{value / 1e3:.1f} s"
    return f"{value:.0f} ms" if value >= 99.5 else f"{value:.1f} ms"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _first_tokens(good: Sequence[Record], tenants: Sequence[str]) -> Chart | None:
    series = _by_tenant(good, tenants, lambda r: [] if r.ttft_ms is None else [r.ttft_ms])
    return plots.distribution("Time to first token", "time to first token, ms", series)


def _gaps(good: Sequence[Record], tenants: Sequence[str]) -> Chart | None:
    series = _by_tenant(good, tenants, lambda r: r.gaps_ms)
    return plots.distribution("Between tokens", "time between two chunks of text, ms", series)


def _by_tenant(
    records: Sequence[Record], tenants: Sequence[str], values: Callable[[Record], list[float]]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {tenant: [] for tenant in tenants}
    for record in records:
        if record.tenant in found:
            found[record.tenant].extend(values(record))
    return found


def _bins(end: float, count: int) -> list[Window]:
    """At least a second wide, and wide enough that `count` events fill them."""
    width = max(1.0, end / _BINS, end / max(1, count))
    edges = [width * i for i in range(math.ceil(end / width - 1e-9) + 1)]
    return [Window(a, b) for a, b in pairwise(edges)]


def _throughput(
    records: Sequence[Record], marks: plots.Marks, tenants: Sequence[str]
) -> Chart | None:
    times = _by_tenant(records, tenants, lambda r: list(r.chunks))
    tokens: Counter[str] = Counter()
    for r in records:
        tokens[r.tenant] += max(r.completion_tokens, len(r.chunks)) if r.chunks else 0
    bins = _bins(marks.end, _BINS)
    lines = []
    for tenant, found in times.items():
        a_chunk = tokens[tenant] / len(found) if found else 0.0
        edges = [bins[0].begin, *(b.end for b in bins)]
        counts, _ = np.histogram(found, edges)
        points = [
            ((b.begin + b.end) / 2, float(c) * a_chunk / b.seconds)
            for b, c in zip(bins, counts, strict=True)
        ]
        lines.append(plots.Line(tenant, points))
    return plots.over_time("Throughput over time", "output tokens/s", lines, marks)


def _quantile_points(
    records: Sequence[Record], bins: Sequence[Window], percentile: float
) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for b in bins:
        found = [t for r in records if b.holds(r.due) and (t := r.ttft_ms) is not None]
        value = float(np.percentile(found, percentile)) if found else None
        points.append(((b.begin + b.end) / 2, value))
    return points


def _percentiles(records: Sequence[Record], marks: plots.Marks) -> Chart | None:
    good = [r for r in records if r.ok]
    bins = _bins(marks.end, len(good) // 8)
    lines = [plots.Line(f"p{p}", _quantile_points(good, bins, p)) for p in (50, 90, 99)]
    return plots.over_time("Time to first token over time", "time to first token, ms", lines, marks)


def _tenants_over_time(
    records: Sequence[Record], marks: plots.Marks, tenants: Sequence[str]
) -> Chart | None:
    if len(tenants) < 2:
        return None
    lines = []
    for tenant in tenants:
        good = [r for r in records if r.ok and r.tenant == tenant]
        bins = _bins(marks.end, len(good) // 4)
        lines.append(plots.Line(tenant, _quantile_points(good, bins, 50)))
    return plots.over_time(
        "Median time to first token by tenant", "time to first token, ms", lines, marks
    )


def _failures(records: Sequence[Record], marks: plots.Marks) -> Chart | None:
    bad = [r for r in records if not r.ok]
    bins = _bins(marks.end, _BINS)
    lines = []
    for outcome in sorted({r.outcome for r in bad})[:_SERIES]:
        ends = [r.end for r in bad if r.outcome == outcome]
        points = [((b.begin + b.end) / 2, float(sum(map(b.holds, ends)))) for b in bins]
        lines.append(plots.Line(outcome, points))
    return plots.over_time("Failed requests over time", "failed requests", lines, marks)


def _ranges(title: str, groups: dict[str, Figures]) -> Chart | None:
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: -item[1].requests)[:_ROWS]:
        t = group.ttft_ms
        if t.p50 is not None and t.p90 is not None and t.p99 is not None:
            rows.append((name, t.p50, t.p90, t.p99))
    return plots.ranges(title, "time to first token, ms", rows)


def _adapters(summary: Summary) -> Chart | None:
    return _ranges("Time to first token by adapter", summary.by_adapter)


def _adapter_rates(summary: Summary) -> Chart | None:
    most = sorted(summary.by_adapter.items(), key=lambda item: -item[1].requests)[:_ROWS]
    rows = [(name, group.output_tokens_per_second) for name, group in most]
    return plots.bars("Throughput by adapter", "output tokens/s", rows)
