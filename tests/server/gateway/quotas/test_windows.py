"""The arithmetic of the sliding window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.gateway.quotas.windows import MINUTE, Window

windows = st.builds(
    lambda previous, left, current: Window(previous, left, current, left + MINUTE),
    st.integers(0, 10**6),
    st.floats(0, MINUTE),
    st.integers(0, 10**6),
)


@given(windows, st.floats(0, 2e6))
def test_it_says_when_there_is_room_and_not_later(window: Window, units: float) -> None:
    wait = window.until(units)
    slack = 1e-6 * (1 + window.previous + window.current)
    assert window.used(wait) <= units + slack
    if wait > 0.01:
        assert window.used(wait - 0.01) > units - slack


@given(windows, st.floats(0, 120), st.floats(0, 120))
def test_what_was_used_only_fades(window: Window, one: float, other: float) -> None:
    early, late = sorted((one, other))
    assert window.used(late) <= window.used(early) + 1e-6
    assert window.used(window.reset() + 1e-6) < 1e-1 * (1 + window.current + window.previous)
    assert window.used(120.001) == 0


def test_half_a_minute_later_half_of_the_minute_before_counts() -> None:
    window = Window(previous=100, previous_left=30, current=10, current_left=90)
    assert window.used() == 60
    assert window.used(15) == 35
    assert window.until(35) == 15
    assert window.until(60) == 0
    assert window.until(5) == 60  # The present minute is the one before then, and half of it gone.
    assert window.reset() == 90
    assert Window().until(0) == Window().reset() == 0
