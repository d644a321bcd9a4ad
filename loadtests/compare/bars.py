"""Bars: a ratio that is to be reached, and whether it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

# Of one variant, a value a round; the same index is the same round.
Rounds = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """`goal` is the most (or, not `at_most`, the least) that a ratio may be."""

    goal: float
    at_most: bool

    def met(self, measured: float) -> bool:
        """Never by a NaN: what was not measured was not reached."""
        return measured <= self.goal if self.at_most else measured >= self.goal

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.goal:.2f}"


def at_most(goal: float) -> Bar:
    return Bar(goal, at_most=True)


def at_least(goal: float) -> Bar:
    return Bar(goal, at_most=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. Without a bar it is for orientation.

    `measured` is the ratio; None where it could not be measured. `figures` are the absolute ones
    that it is made of, for people.
    """

    title: str
    measured: float | None
    figures: str = ""
    bar: Bar | None = None

    @property
    def verdict(self) -> str:
        """`met`, `MISSED`, `NOT MEASURED`; empty without a bar."""
        if self.bar is None:
            return ""
        if self.measured is None:
            return "NOT MEASURED"
        return "met" if self.bar.met(self.measured) else "MISSED"

    @property
    def failed(self) -> bool:
        """Whether there is a bar and it is not known to be met."""
        return self.verdict not in {"", "met"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with what load they are of. `samples` are all rounds' values, by what they are."""

    key: str
    title: str
    load: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return any(row.failed for row in self.rows)


def ratio(rounds: Rounds, over: str, under: str) -> float | None:
    """The median of the rounds' ratios; None where a side has no value.

    Of each round its own ratio, so that a machine that is slower for a minute is so for both.
    Sides that were measured in other rounds than each other are compared by their medians.
    """
    above, below = rounds.get(over, ()), rounds.get(under, ())
    if not above or not below:
        return None
    if len(above) != len(below):
        above, below = [median(above)], [median(below)]
    ratios = [a / b for a, b in zip(above, below, strict=True) if b > 0]
    return median(ratios) if ratios and all(map(math.isfinite, ratios)) else None


def middle(rounds: Rounds, name: str) -> float | None:
    """The median of a variant's rounds; None where it has none."""
    values = rounds.get(name, ())
    return median(values) if values else None


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The variants in another order each round: none is always first, or always after another."""
    order = list(names if number % 2 == 0 else reversed(names))
    start = (number // 2) % len(order)
    return order[start:] + order[:start]
