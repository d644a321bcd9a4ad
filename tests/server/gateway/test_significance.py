"""The tests behind a verdict: exact, and right about how often they are wrong."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from server.gateway.significance import CRITERIA, FALSE_ALARM, level, more_often, slower


def exact(bad: int, of: int, stable_bad: int, stable_of: int) -> Fraction:
    """Fisher's test by whole numbers."""
    total, all_bad = of + stable_of, bad + stable_bad
    ways = sum(
        math.comb(all_bad, i) * math.comb(total - all_bad, of - i)
        for i in range(bad, min(of, all_bad) + 1)
        if of - i >= 0
    )
    return Fraction(ways, math.comb(total, of))


@given(st.data(), st.integers(1, 60), st.integers(1, 200))
def test_fishers_test_is_exact(data: st.DataObject, of: int, stable_of: int) -> None:
    bad = data.draw(st.integers(0, of))
    stable_bad = data.draw(st.integers(0, stable_of))
    expected = float(exact(bad, of, stable_bad, stable_of))
    assert math.isclose(more_often(bad, of, stable_bad, stable_of), expected, rel_tol=1e-9)


def test_figures_that_can_be_looked_up() -> None:
    # The lady tasting tea: all four of four, 1 in 70.
    assert math.isclose(more_often(4, 4, 0, 4), 1 / 70, rel_tol=1e-12)
    assert math.isclose(more_often(0, 4, 0, 4), 1.0)


def test_large_windows_do_not_overflow() -> None:
    assert more_often(10_000, 10_000, 0, 10_000) < 1e-300
    assert 0.4 < more_often(500, 10_000, 500, 10_000) < 0.6


def test_all_judgements_together_stay_within_the_false_alarms() -> None:
    spent = CRITERIA * math.fsum(level(look) for look in range(1, 200_000))
    assert 0.99 * FALSE_ALARM < spent < FALSE_ALARM


times = st.lists(st.floats(0.001, 100, allow_nan=False), min_size=1, max_size=30)


@given(times, times, st.floats(1.1, 5))
def test_slower_is_a_probability_and_grows_no_larger_when_the_canary_gets_slower(
    values: list[float], stable: list[float], factor: float
) -> None:
    chance = slower(values, stable, factor)
    assert 0 <= chance <= 1
    assert slower([value * 1e6 for value in values], stable, factor) <= chance + 1e-9


def test_slower_needs_more_than_the_factor() -> None:
    stable = [1.0 + i / 100 for i in range(20)]
    assert slower([2.5 + i / 100 for i in range(10)], stable, 2.0) < 1e-4
    assert slower([1.9 + i / 100 for i in range(10)], stable, 2.0) > 0.5
    assert slower([], stable, 2.0) == slower(stable, [], 2.0) == 1.0
