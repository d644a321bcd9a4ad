"""Patterns for names: what they match, what is none, and what several of them leave."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.access import ALL, MAX_PATTERNS, Access, access, check_patterns, everything
from adapters.errors import UsageError

LETTERS = "abcA1._-"
NAMES = st.text(LETTERS, min_size=1, max_size=12)
PIECES = st.one_of(
    st.sampled_from(["*", "?", "**", "a*", "[ab]", "[!ab]", "[a-c]"]),
    st.text(LETTERS, min_size=1, max_size=4),
)
PATTERNS = st.lists(PIECES, min_size=1, max_size=5).map("".join)


def matches(pattern: str, name: str) -> bool:
    """The globs again, one character at a time."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(matches(pattern[1:], name[k:]) for k in range(len(name) + 1))
    if not name:
        return False
    if pattern[0] == "?":
        return matches(pattern[1:], name[1:])
    if pattern[0] == "[":
        end = pattern.index("]", 2)
        one = re.fullmatch(pattern[: end + 1].replace("[!", "[^"), name[0])
        return one is not None and matches(pattern[end + 1 :], name[1:])
    return pattern[0] == name[0] and matches(pattern[1:], name[1:])


@given(PATTERNS, NAMES)
def test_a_pattern_matches_as_said(pattern: str, name: str) -> None:
    assert check_patterns([pattern]) == (pattern,)
    assert access([pattern]).allows(name) == matches(pattern, name)


@given(st.lists(PATTERNS, max_size=4), st.lists(PATTERNS, max_size=4), NAMES)
def test_any_of_a_list_and_all_of_the_lists(one: list[str], two: list[str], name: str) -> None:
    both = access(one, two)
    assert both.allows(name) == (
        any(matches(p, name) for p in one) and any(matches(p, name) for p in two)
    )
    assert both.allows(name) <= access(one).allows(name)
    assert access(None, two) == access(two)


def test_without_limits_every_name() -> None:
    assert access(None, None) == ALL == Access()
    assert ALL.allows("bot")
    assert everything("bot")
    assert ALL.allows("mix-0123456789abcdef")
    assert not access([]).allows("bot")


def test_a_sum_that_a_request_made_is_nobodys_name() -> None:
    for patterns in (["*"], ["mix-*"], ["mix-0123456789abcdef"]):
        assert not access(patterns).allows("mix-0123456789abcdef")
        assert access(["mix-*"]).allows("mix-tape")


@pytest.mark.parametrize(
    "wrong",
    ["", "bot:prod", "bot@sha256:00000000", "a b", "[", "[]", "bot]", "[!]", "a/b", "é", "x" * 129],
)
def test_what_is_no_pattern(wrong: str) -> None:
    with pytest.raises(UsageError, match="is no pattern for names"):
        check_patterns([wrong])


def test_patterns_are_kept_once_and_not_without_end() -> None:
    assert check_patterns(["b*", "a", "b*"]) == ("b*", "a")
    with pytest.raises(UsageError, match=f"at most {MAX_PATTERNS}"):
        check_patterns([f"a{k}" for k in range(MAX_PATTERNS + 1)])


def test_for_people() -> None:
    assert str(access(["a-*", "b"], ["a-*"])) == "a-*, b and a-*"
    assert str(ALL) == "everything"
    assert str(access([])) == "nothing"


def test_a_pattern_made_to_be_slow_is_not() -> None:
    """Nested repetition would take longer than any test may."""
    assert not access(["*a" * 40 + "b"]).allows("a" * 128)
