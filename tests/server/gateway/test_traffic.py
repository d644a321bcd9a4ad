"""Rolling windows of traffic: what they count, for how long, in how much memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.observing import Observation, Role
from server.gateway.traffic import MINUTE, QUARTER, Traffic, TrafficKey, quantile

ONE = Observation(
    adapter="pirate",
    number=2,
    lane="hot",
    role=Role.PLAIN,
    route=None,
    path="/v1/chat/completions",
    outcome="ok",
    ended=0.0,
    waited=0.001,
    first_token=0.2,
    seconds=1.2,
    prompt_tokens=30,
    completion_tokens=11,
)
KEY = TrafficKey("pirate", 2, "hot")


class Clock:
    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traffic(clock: Clock) -> Traffic:
    return Traffic(clock=clock)


def test_a_request_counts_for_its_version_and_lane(traffic: Traffic, clock: Clock) -> None:
    traffic.observe(replace(ONE, ended=clock.now))
    traffic.observe(replace(ONE, ended=clock.now, lane="merged", outcome="engine_died"))
    traffic.observe(replace(ONE, ended=clock.now, number=None, lane="base", adapter="tiny"))
    figures = traffic.figures(MINUTE)
    assert set(figures) == {
        KEY,
        TrafficKey("pirate", 2, "merged"),
        TrafficKey("tiny", None, "base"),
    }
    hot = figures[KEY]
    assert (hot.requests, hot.prompt_tokens, hot.completion_tokens, hot.tokens) == (1, 30, 11, 41)
    assert hot.failed == 0
    assert figures[TrafficKey("pirate", 2, "merged")].errors == {"engine_died": 1}
    total = traffic.total(MINUTE)
    assert (total.requests, total.failed, total.tokens) == (3, 1, 123)


def test_times_are_within_a_bin(traffic: Traffic, clock: Clock) -> None:
    for first in (0.1, 0.2, 0.3):
        traffic.observe(replace(ONE, ended=clock.now, first_token=first, seconds=first + 1))
    found = traffic.figures(MINUTE)[KEY]
    assert found.first_token_p50 == pytest.approx(0.2, rel=0.06)
    assert found.first_token_p95 == pytest.approx(0.3, rel=0.06)
    assert found.per_token_p50 == pytest.approx(0.1, rel=0.06)
    assert found.waited_p50 == pytest.approx(0.001, rel=0.06)


def test_what_was_not_measured_is_none(traffic: Traffic, clock: Clock) -> None:
    whole = replace(ONE, ended=clock.now, first_token=None)
    traffic.observe(whole)
    traffic.observe(replace(whole, first_token=0.5, completion_tokens=1))
    found = traffic.figures(MINUTE)[KEY]
    assert found.first_token_p50 == pytest.approx(0.5, rel=0.06)
    assert found.per_token_p50 is None


def test_a_client_that_left_is_no_error(traffic: Traffic, clock: Clock) -> None:
    traffic.observe(replace(ONE, ended=clock.now, outcome="client_gone"))
    assert traffic.figures(MINUTE)[KEY].failed == 0


def test_canaries_and_shadows_are_counted(traffic: Traffic, clock: Clock) -> None:
    for role in (Role.CANARY, Role.CANARY, Role.SHADOW, Role.STABLE):
        traffic.observe(replace(ONE, ended=clock.now, role=role))
    found = traffic.figures(MINUTE)[KEY]
    assert (found.requests, found.canary, found.shadow) == (4, 2, 1)


def test_a_minute_is_over_after_a_minute(traffic: Traffic, clock: Clock) -> None:
    traffic.observe(replace(ONE, ended=clock.now))
    clock.now += 49
    assert KEY in traffic.figures(MINUTE)
    clock.now += 11
    assert KEY not in traffic.figures(MINUTE)
    assert traffic.figures(QUARTER)[KEY].requests == 1
    assert traffic.quiet(KEY) == 60
    clock.now += 900
    assert traffic.figures(QUARTER) == {}
    assert traffic.total(QUARTER).requests == 0
    assert traffic.quiet(KEY) == 960
    assert traffic.quiet(TrafficKey("nobody", 1, "hot")) is None


def test_rates_are_over_the_time_that_there_was(traffic: Traffic, clock: Clock) -> None:
    clock.now += 20
    traffic.observe(replace(ONE, ended=clock.now, seconds=10))
    found = traffic.figures(MINUTE)[KEY]
    assert found.seconds == 20
    assert found.busy == 0.5
    clock.now += 1000
    assert 50 <= traffic.total(MINUTE).seconds <= 60
    assert 840 <= traffic.total(QUARTER).seconds <= 900


@given(st.lists(st.tuples(st.floats(0, 2000), st.integers(0, 3)), max_size=60))
def test_exactly_what_is_in_the_window_is_counted(events: list[tuple[float, int]]) -> None:
    clock = Clock()
    traffic = Traffic(clock=clock)
    began = clock.now
    for at, number in sorted(events):
        clock.now = began + at
        traffic.observe(replace(ONE, ended=clock.now, number=number))
    for window, width in ((MINUTE, 10), (QUARTER, 60)):
        start = (clock.now // width - window / width + 1) * width
        inside = [number for at, number in events if began + at >= start]
        figures = traffic.figures(window)
        assert sum(one.requests for one in figures.values()) == len(inside)
        assert {key.number for key in figures} == set(inside)
        assert traffic.total(window).requests == len(inside)


@given(st.lists(st.floats(1e-5, 1e3), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_was_there(values: list[float], share: float) -> None:
    traffic = Traffic(clock=lambda: 0.0)
    for value in values:
        traffic.observe(replace(ONE, waited=value))
    histogram = next(iter(traffic._total.rings[MINUTE].slices.values())).waited
    found = quantile(histogram, share)
    nearest = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert found == pytest.approx(nearest, rel=0.06)


def test_nothing_waited_is_zero() -> None:
    traffic = Traffic(clock=lambda: 0.0)
    traffic.observe(replace(ONE, waited=0.0))
    assert traffic.figures(MINUTE)[KEY].waited_p50 == 0.0
    assert quantile({}, 0.5) is None


def test_the_quiet_are_forgotten_first_and_the_totals_are_not(clock: Clock) -> None:
    traffic = Traffic(keys=2, clock=clock)
    for adapter in ("a", "b", "a", "c"):
        traffic.observe(replace(ONE, adapter=adapter, ended=clock.now))
    assert {key.adapter for key in traffic.figures(QUARTER)} == {"a", "c"}
    assert traffic.total(QUARTER).requests == 4


def test_memory_is_bounded(clock: Clock) -> None:
    """However long and however many: so many slices for each key, each made when it is needed."""
    traffic = Traffic(keys=5, clock=clock)
    for _ in range(200):
        clock.now += 10
        for number in range(5):
            traffic.observe(replace(ONE, number=number, ended=clock.now))
    assert len(traffic._keys) == 5
    for rings in traffic._keys.values():
        counts = {window: len(ring.slices) for window, ring in rings.rings.items()}
        assert counts == {MINUTE: 6, QUARTER: 15}
