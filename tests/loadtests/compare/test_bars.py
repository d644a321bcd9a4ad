"""Ratios and bars: what counts as met, and that machine speed cancels."""

from __future__ import annotations

import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.compare.bars import (
    Bar,
    Row,
    Table,
    at_least,
    at_most,
    middle,
    ratio,
    rotated,
)

positive = st.floats(min_value=1e-3, max_value=1e3)
rounds = st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=9)


@given(goal=positive, measured=positive, most=st.booleans())
def test_bar_is_met_on_its_side_of_the_goal(goal: float, measured: float, most: bool) -> None:
    bar = Bar(goal, at_most=most)
    assert bar.met(goal)
    assert bar.met(measured) == (measured == goal or (measured < goal) == most)
    assert not bar.met(math.nan)


@given(rounds)
def test_speed_of_the_machine_in_a_round_cancels(values: list[tuple[float, float, float]]) -> None:
    plain = {"a": [a for a, _, _ in values], "b": [b for _, b, _ in values]}
    slowed = {"a": [a * s for a, _, s in values], "b": [b * s for _, b, s in values]}
    assert ratio(slowed, "a", "b") == pytest.approx(ratio(plain, "a", "b"))


@given(rounds)
def test_ratio_lies_among_the_rounds_own(values: list[tuple[float, float, float]]) -> None:
    found = ratio({"a": [a for a, _, _ in values], "b": [b for _, b, _ in values]}, "a", "b")
    assert found is not None
    each = [a / b for a, b, _ in values]
    assert min(each) <= found <= max(each)


@given(st.lists(positive, min_size=1, max_size=9), st.lists(positive, min_size=1, max_size=9))
def test_other_rounds_are_compared_by_their_medians(a: list[float], b: list[float]) -> None:
    if len(a) != len(b):
        assert ratio({"a": a, "b": b}, "a", "b") == pytest.approx(median(a) / median(b))


def test_what_was_not_measured_has_no_ratio_and_fails_its_bar() -> None:
    samples = {"a": [1.0], "zero": [0.0], "none": []}
    for over, under in (("a", "absent"), ("absent", "a"), ("a", "zero"), ("none", "none")):
        assert ratio(samples, over, under) is None
    assert ratio({"a": [math.nan], "b": [1.0]}, "a", "b") is None
    assert middle(samples, "none") is None
    row = Row("x", None, bar=at_most(1.0))
    assert row.verdict == "NOT MEASURED" and row.failed


def test_table_fails_by_one_missed_bar_and_never_by_orientation() -> None:
    met = Row("x", 0.9, bar=at_most(1.0))
    for rows, failed in (
        ([met, Row("orientation", None)], False),
        ([met, Row("y", 0.69, bar=at_least(0.7))], True),
        ([met, Row("y", 0.70, bar=at_least(0.7))], False),
    ):
        table = Table("k", "title", "load", tuple(rows))
        assert table.failed is failed


@given(st.integers(1, 6).map(lambda count: list("abcdef")[:count]))
def test_order_changes_and_everybody_has_a_turn(names: list[str]) -> None:
    orders = [rotated(names, number) for number in range(2 * len(names))]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert {order[0] for order in orders} == set(names)
