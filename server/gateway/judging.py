"""When a canary is taken back: beyond a limit, and not by chance.

Each criterion asks two things of the canary's and the stable version's last requests: is the
difference beyond the route's limit, and would chance bring about as much less often than
`significance.level` allows? The first alone would condemn good canaries, the second alone harmless
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from adapters.lanes.models import Limits
from server.gateway.significance import level, more_often, slower
from server.gateway.windows import ENGINE_DOWN, Measure, Side

# What a canary is held against where the stable version gets no requests to compare: so many
# requests of it, all good. About one failure in 20 is what these can rule out (the rule of three:
# none in n leaves at most 3/n, with 95 %).
ASSUMED = 60
# How far on the way from the stable version's own answers to words in no order an answer may be;
# docs/canary.md has what honest fine-tunes and broken ones were measured at. Not a number of nats:
# a version that was trained hard on few forms finds all else, sense or not, less likely.
ABSURD = 0.7
# Scores of the stable version's own answers, and of words in no order, that make a median.
FEWEST_SCORES = 5
FEWEST_SALADS = 3


# Bad ones, and of how many.
Counted = tuple[int, int]


class Reason(StrEnum):
    """Why a canary was taken back, as the metric's label."""

    ERRORS = "errors"
    SLOWER = "slower"
    DEGENERATE = "degenerate"
    # Not judged: the engine said that it is not to be used at all.
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`words` have the figures: `12 of 14 answers degenerate against 0 of 120`."""

    reason: Reason
    words: str


def judge(limits: Limits, canary: Side, stable: Side | None, look: int) -> Verdict | None:
    """Whether the canary goes; `look` counts how often it was judged, this time included."""
    for verdict, chance in _findings(limits, canary, stable):
        if chance <= level(look):
            return verdict
    return None


def absurd_beyond(stable: Side | None) -> float | None:
    """Nats per token from which an answer counts as absurd; None: not known yet."""
    if stable is None or len(stable.scores) < FEWEST_SCORES or len(stable.salads) < FEWEST_SALADS:
        return None
    own, salad = median(stable.scores), median(stable.salads)
    # A version that makes no difference between the two cannot judge.
    return None if salad <= own else own + ABSURD * (salad - own)


def _findings(limits: Limits, canary: Side, stable: Side | None) -> Iterator[tuple[Verdict, float]]:
    """What is beyond a limit, each with the chance that the canary is as good as the stable one."""
    yield from _errors(limits, canary, stable)
    yield from _degenerate(limits, canary, stable)
    if stable is not None:
        yield from _absurd(limits, canary, stable)
        yield from _slower(limits, canary, stable)


def _errors(limits: Limits, canary: Side, stable: Side | None) -> Iterator[tuple[Verdict, float]]:
    of, bad = len(canary.samples), canary.failed
    if stable is not None and stable.samples:
        against: Counted | None = (stable.failed, len(stable.samples))
    else:
        against = None
        if canary.lane != "merged":
            # The engine's own failure would have been the stable version's as well.
            down = sum(sample.outcome in ENGINE_DOWN for sample in canary.samples)
            of, bad = of - down, bad - down
    yield from _more(
        limits.least, limits.errors, (bad, of), against, Reason.ERRORS, "requests failed"
    )


def _degenerate(
    limits: Limits, canary: Side, stable: Side | None
) -> Iterator[tuple[Verdict, float]]:
    against: Counted | None = None
    if stable is not None and stable.read:
        against = (stable.degenerate, stable.read)
    kinds = sorted({why.value.replace("_", " ") for why in canary.texts if why is not None})
    what = f"answers degenerate ({', '.join(kinds)})"
    bad = (canary.degenerate, canary.read)
    yield from _more(limits.least, limits.degenerate, bad, against, Reason.DEGENERATE, what)


def _absurd(limits: Limits, canary: Side, stable: Side) -> Iterator[tuple[Verdict, float]]:
    beyond = absurd_beyond(stable)
    if beyond is None:
        return
    bad, against = ((side.absurd(beyond), len(side.scores)) for side in (canary, stable))
    what = "scored answers degenerate"
    for verdict, chance in _more(
        limits.least, limits.degenerate, bad, against, Reason.DEGENERATE, what
    ):
        words = (
            f"{verdict.words} (absurd: {median(canary.scores):.1f} nats per token by the stable "
            f"version; its own answers {median(stable.scores):.1f}, words in no order "
            f"{median(stable.salads):.1f})"
        )
        yield Verdict(verdict.reason, words), chance


def _more(
    least: int, limit: float, bad: Counted, stable: Counted | None, reason: Reason, what: str
) -> Iterator[tuple[Verdict, float]]:
    (count, of), (stable_count, stable_of) = bad, stable or (0, ASSUMED)
    if of < least or not stable_of or count / of - stable_count / stable_of <= limit:
        return
    words = f"{count} of {of} {what} "
    words += (
        "with nothing to compare" if stable is None else f"against {stable_count} of {stable_of}"
    )
    yield Verdict(reason, words), more_often(count, of, stable_count, stable_of)


def _slower(limits: Limits, canary: Side, stable: Side) -> Iterator[tuple[Verdict, float]]:
    measures: tuple[tuple[str, tuple[Measure, ...]], ...] = (
        ("to the first token", (lambda s: s.first_token,)),
        ("per token", (lambda s: s.per_token,)),
        # Alone, the one would blame longer answers, the other shorter ones.
        ("for a whole answer", (lambda s: s.whole, lambda s: s.whole_per_token)),
    )
    for what, together in measures:
        pairs = [(canary.values(measure), stable.values(measure)) for measure in together]
        if any(len(mine) < limits.least or len(its) < limits.least for mine, its in pairs):
            continue
        if any(median(mine) <= limits.slower * median(its) for mine, its in pairs):
            continue
        mine, its = pairs[0]
        words = (
            f"{_seconds(median(mine))} {what} against {_seconds(median(its))} "
            f"(medians of {len(mine)} and {len(its)} answers)"
        )
        chance = max(slower(mine, its, limits.slower) for mine, its in pairs)
        yield Verdict(Reason.SLOWER, words), chance


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
