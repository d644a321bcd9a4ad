"""From records to a summary's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from loadtests.load.records import Record
from loadtests.reporting.summary import ErrorKind, Fairness, Figures, Phase, Quantiles
from loadtests.scenarios import Scenario

# Below this share of a core the generator keeps up; above, its own waiting is in the figures.
BUSY = 0.7
LAGGING_MS = 20.0
_MESSAGE = 200


def quantiles(values: Sequence[float]) -> Quantiles:
    """Mean, percentiles (linear interpolation, as numpy's default) and maximum."""
    if not values:
        return Quantiles()
    found = np.asarray(values, dtype=float)
    p50, p90, p99 = (float(p) for p in np.percentile(found, [50, 90, 99]))
    return Quantiles(
        count=len(found),
        mean=float(found.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        max=float(found.max()),
    )


def jain(amounts: Sequence[float]) -> float | None:
    """Jain's index of fairness, (Σx)² / (n·Σx²), in 1/n..1; None for fewer than two or all 0."""
    squares = sum(x * x for x in amounts)
    if len(amounts) < 2 or squares == 0:
        return None
    return min(1.0, sum(amounts) ** 2 / (len(amounts) * squares))


class Window:
    """The measured part of a run: seconds from the start."""

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, max(end, begin + 1e-9)

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    def holds(self, time: float) -> bool:
        return self.begin <= time < self.end

    def tokens(self, records: Iterable[Record]) -> float:
        """Output tokens that arrived within: a chunk counts as its share of the answer's."""
        return sum(
            sum(map(self.holds, r.chunks)) * max(r.completion_tokens, len(r.chunks)) / len(r.chunks)
            for r in records
            if r.chunks
        )


def window_of(scenario: Scenario, records: Sequence[Record]) -> Window:
    """After the warm-up, to the end: of the duration, or of the last answer to a number of them."""
    if scenario.end is not None:
        return Window(scenario.warmup_seconds, scenario.end)
    measured = [r for r in records if not r.warmup]
    if not measured:
        return Window(0.0, 0.0)
    # The last answer's last token is within.
    return Window(min(r.due for r in measured), max(r.end for r in measured) + 1e-6)


def figures(records: Sequence[Record], window: Window) -> Figures:
    """Of one group: `records` are all of its requests, warm-up and late ones included."""
    measured = [r for r in records if not r.warmup and window.holds(r.due)]
    good = [r for r in measured if r.ok]
    return Figures(
        requests=len(measured),
        ok=len(good),
        errors=len(measured) - len(good),
        outcomes=dict(sorted(Counter(r.outcome for r in measured).items())),
        prompt_tokens=sum(r.prompt_tokens or 0 for r in good),
        completion_tokens=sum(r.completion_tokens for r in good),
        ttft_ms=quantiles([t for r in good if (t := r.ttft_ms) is not None]),
        itl_ms=quantiles([gap for r in good for gap in r.gaps_ms]),
        tpot_ms=quantiles([t for r in good if (t := r.itl_mean_ms) is not None]),
        total_ms=quantiles([r.total_ms for r in good]),
        late_ms=quantiles([(r.sent - r.due) * 1e3 for r in measured]),
        output_tokens_per_second=window.tokens(records) / window.seconds,
        requests_per_second=sum(r.ok and window.holds(r.end) for r in records) / window.seconds,
    )


def grouped(
    records: Sequence[Record], key: Callable[[Record], str], window: Window
) -> dict[str, Figures]:
    """Figures by `key`, in the order of the names, of those with a measured request."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    found = {name: figures(groups[name], window) for name in sorted(groups)}
    return {name: group for name, group in found.items() if group.requests}


def first_and_later(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Requests by whether they were the first of the run to their adapter."""
    seen: set[str] = set()
    first: list[Record] = []
    later: list[Record] = []
    for record in sorted(records, key=lambda r: r.sent):
        (later if record.model in seen else first).append(record)
        seen.add(record.model)
    return first, later


def phases(scenario: Scenario, records: Sequence[Record], window: Window) -> tuple[Phase, ...]:
    """The window, cut where a tenant begins."""
    begins = sorted({max(window.begin, tenant.begin) for tenant in scenario.askers})
    edges = [b for b in dict.fromkeys([window.begin, *begins]) if b < window.end] + [window.end]
    found = []
    for begin, end in pairwise(edges):
        active = tuple(t.name for t in scenario.askers if t.begin <= begin)
        by_tenant = grouped(records, lambda r: r.tenant, Window(begin, end))
        found.append(Phase(begin=begin, end=end, active=active, by_tenant=by_tenant))
    return tuple(found)


def fairness(
    by_tenant: Mapping[str, Figures], by_adapter: Mapping[str, Figures], parts: Sequence[Phase]
) -> Fairness:
    last = parts[-1].by_tenant if parts else {}
    slowdown: dict[str, float | None] = {}
    for name in by_tenant:
        seen = [part.by_tenant[name].ttft_ms.p50 for part in parts if name in part.by_tenant]
        if len(seen) > 1:
            before, after = seen[0], seen[-1]
            slowdown[name] = after / before if before and after is not None else None
    return Fairness(
        jain_tokens_by_tenant=jain([f.output_tokens_per_second for f in last.values()]),
        jain_tokens_by_adapter=jain([f.output_tokens_per_second for f in by_adapter.values()]),
        ttft_p50_spread_by_tenant=_spread(by_tenant),
        ttft_p50_spread_by_adapter=_spread(by_adapter),
        slowdown=slowdown,
    )


def _spread(groups: Mapping[str, Figures]) -> float | None:
    medians = [f.ttft_ms.p50 for f in groups.values()]
    known = [p50 for p50 in medians if p50]
    return max(known) / min(known) if len(known) == len(medians) > 1 else None


def error_kinds(records: Sequence[Record], window: Window) -> tuple[ErrorKind, ...]:
    """Failures of the measured requests, the most frequent first."""
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for r in records:
        if not r.ok and not r.warmup and window.holds(r.due):
            message = " ".join(r.error.split())[:_MESSAGE]
            kinds.setdefault((r.outcome, message), Counter())[r.model] += 1
    found = [
        ErrorKind(outcome=o, message=m, count=c.total(), models=tuple(sorted(c)[:5]))
        for (o, m), c in kinds.items()
    ]
    return tuple(sorted(found, key=lambda kind: (-kind.count, kind.outcome, kind.message)))


def answered_by(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """By model asked for, how often which version answered, where the server tells."""
    found: dict[str, Counter[str]] = {}
    for r in records:
        if r.answered_by and not r.warmup:
            found.setdefault(r.model, Counter())[r.answered_by] += 1
    return {model: dict(sorted(counts.items())) for model, counts in sorted(found.items())}
