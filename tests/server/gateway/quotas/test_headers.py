"""The headers that OpenAI's clients read."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.quotas.headers import Left, duration, rate_headers, retry_after


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0171, "18ms"),
        (0.9999, "999ms"),
        (1, "1s"),
        (59.2, "1m0s"),
        (61, "1m1s"),
        (120, "2m0s"),
    ],
)
def test_a_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 120))
def test_a_duration_is_never_too_short(seconds: float) -> None:
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", duration(seconds))
    assert found is not None
    minutes, whole, milli = (int(part or 0) for part in found.groups())
    assert seconds - 0.001 <= 60 * minutes + whole + milli / 1000 <= seconds + 1
    assert 1 <= retry_after(seconds) <= 120
    assert retry_after(seconds) >= min(seconds, 120)


def test_the_tightest_quota_is_told() -> None:
    key, tenant = Left("requests", 10, 2.5, 90), Left("requests", 100, 95.0, 30)
    assert rate_headers([key, tenant]) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "30s",
    }
    tokens = Left("tokens", 1000, 1200.0, 0.25)
    assert rate_headers([tokens])["x-ratelimit-remaining-tokens"] == "0"
    assert rate_headers([]) == {}
