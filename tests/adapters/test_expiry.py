"""When a key ends: spans from now, dates, and what is neither."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UsageError
from adapters.expiry import check_expiry, parse_expiry

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@given(st.integers(1, 400_000), st.sampled_from("hd"))
def test_a_span_counts_from_now(count: int, unit: str) -> None:
    assert parse_expiry(f"{count}{unit}", NOW) == NOW + count * UNITS[unit]


@given(st.datetimes(NOW.replace(tzinfo=None) + timedelta(seconds=1), datetime(9000, 1, 1)))
def test_a_time_without_a_zone_is_utc(moment: datetime) -> None:
    assert parse_expiry(moment.isoformat(), NOW) == moment.replace(tzinfo=UTC)
    east = moment.replace(tzinfo=timezone(timedelta(hours=-5)))
    assert parse_expiry(east.isoformat(), NOW) == east


def test_a_date_is_its_first_moment() -> None:
    assert parse_expiry("2030-02-01", NOW) == datetime(2030, 2, 1, tzinfo=UTC)
    assert parse_expiry("2w", NOW) == NOW + timedelta(days=14)


@given(st.text(max_size=12))
def test_anything_else_is_wrong_usage(text: str) -> None:
    try:
        assert parse_expiry(text, NOW) > NOW
    except UsageError as error:
        assert "\n" not in error.message or "\n" in text


@pytest.mark.parametrize(
    "text", ["", "30", "d", "0d", "-1d", "1m", "999999w", "2030-13-01", "soon"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="12h, 30d or 2w"):
        parse_expiry(text, NOW)


def test_what_is_over() -> None:
    for text in ("2030-01-31", "2029-12-31", "2030-01-31T12:00:00"):
        with pytest.raises(UsageError, match="is over already"):
            parse_expiry(text, NOW)
    with pytest.raises(UsageError):
        check_expiry(NOW, NOW)
