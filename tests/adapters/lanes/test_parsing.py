"""Targets, shares and headers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UsageError
from adapters.frozen import Lane
from adapters.lanes.parsing import Target, check_header, parse_header, parse_share, parse_target
from adapters.lanes.wording import share_text

SHARES = st.decimals(0, 100, places=3).map(str)
SELECTORS = st.one_of(
    st.integers(1, 999).map(lambda n: f"v{n}"),
    st.sampled_from(["prod", "beta-2", "_x", "sha256:0123abcd", "sha256:" + "f" * 64]),
)


@given(st.text(max_size=400) | st.from_regex(r"[v@:=%.0-9a-z ]{0,30}", fullmatch=True))
def test_any_text_is_a_target_or_a_usage_error(text: str) -> None:
    try:
        target = parse_target(text)
    except UsageError as error:
        assert "\n" not in error.message or "\n" in text
        return
    assert target.selector is not None or target.lane is not None
    assert target.share is None or 0 <= target.share <= 1
    # What was taken can be looked up.
    assert (target.reference("bot") is None) == (target.selector is None)


@given(st.text(max_size=60) | st.from_regex(r"[0-9.% ]{0,12}", fullmatch=True))
def test_any_text_is_a_share_or_a_usage_error(text: str) -> None:
    try:
        share = parse_share(text)
    except UsageError:
        return
    assert 0 <= share <= 1


@given(st.text(max_size=300))
def test_any_text_is_a_header_or_a_usage_error(text: str) -> None:
    try:
        name, value = parse_header(text)
    except UsageError:
        return
    assert name == name.lower() and name and value
    assert check_header(name, value) == (name, value)


@given(selector=SELECTORS, lane=st.sampled_from([None, *Lane]), share=st.none() | SHARES)
def test_what_is_written_is_what_is_meant(
    selector: str, lane: Lane | None, share: str | None
) -> None:
    text = selector + (f"@{lane}" if lane else "") + (f"={share}%" if share else "")
    expected = None if share is None else float(share) / 100
    assert parse_target(text) == Target(selector, lane, expected)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("v4=5%", Target("v4", None, 0.05)),
        ("v5@merged=2.5%", Target("v5", Lane.MERGED, 0.025)),
        ("@merged=10 %", Target(None, Lane.MERGED, 0.1)),
        (" beta = 0.05 ", Target("beta", None, 0.05)),
        ("v4=.5", Target("v4", None, 0.5)),
        ("v4", Target("v4", None, None)),
        ("sha256:0123abcd@hot=100%", Target("sha256:0123abcd", Lane.HOT, 1.0)),
    ],
)
def test_examples(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no version"),
        ("=5%", "names no version"),
        ("v4=5", "'5' is no share"),
        ("v4=1", "'1' is no share"),
        ("v4=-5%", "is no share"),
        ("v4=101%", "at most 100%"),
        ("v4=1.5", "more than everything"),
        ("v4=nan", "is no share"),
        ("v4=1e2%", "is no share"),
        ("v4=٥%", "is no share"),
        ("v4@cold=5%", "a lane, hot or merged"),
        ("v4@=5%", "a lane, hot or merged"),
        ("a b=5%", "'a b' is no v4, no tag"),
        ("sha256:12=5%", "8 to 64 hex digits"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("X-Canary", "is no header"),
        ("=1", "no name of a header"),
        ("x canary=1", "no name of a header"),
        ("X-Canary=", "needs a value"),
        ("X-Canary=\x00", "needs a value"),
        ("Authorization=Bearer x", "holds secrets"),
        ("cookie=a", "holds secrets"),
    ],
)
def test_what_is_no_header_is_said(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_header(text)
    assert words in caught.value.message


def test_shares_in_words() -> None:
    assert [share_text(share) for share in (0.05, 0.025, 1.0, 0.0001)] == [
        "5 %",
        "2.5 %",
        "100 %",
        "0.01 %",
    ]
