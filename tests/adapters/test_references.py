"""References: what parses, round trips and what is refused."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidReference
from adapters.references import (
    Reference,
    check_name,
    check_tag,
    parse_reference,
    parse_version,
)

ALNUM = string.ascii_letters + string.digits
INNER = ALNUM + "._-"

names = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(ALNUM),
    st.text(INNER, max_size=60),
    st.sampled_from(ALNUM),
)
tags = st.builds(
    lambda first, rest: first + rest,
    st.sampled_from(string.ascii_letters + "_"),
    st.text(INNER, max_size=63),
).filter(lambda tag: parse_version(tag) is None)
versions = st.integers(1, 999_999_999)
digests = st.text("0123456789abcdef", min_size=8, max_size=64).map("sha256:{}".format)

references = st.one_of(
    names.map(Reference),
    st.builds(lambda n, t: Reference(n, tag=t), names, tags),
    st.builds(lambda n, v: Reference(n, version=v), names, versions),
    st.builds(lambda n, d: Reference(n, digest=d), names, digests),
)


@given(references)
def test_round_trip(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


near_misses = st.builds(
    lambda reference, junk, at: str(reference)[:at] + junk + str(reference)[at:],
    references,
    st.text(max_size=3),
    st.integers(0, 80),
)


@given(st.one_of(st.text(), near_misses, st.text(INNER + ":@/", max_size=300)))
def test_whatever_comes_only_invalid_reference_is_raised(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference as error:
        assert error.message
        assert "\n" not in error.message or "\n" in text
        return
    assert str(reference) == text
    assert "/" not in text and ".." not in (reference.name,)
    assert sum(x is not None for x in (reference.tag, reference.version, reference.digest)) <= 1


@given(st.text())
def test_names_tags_and_versions_raise_nothing_else(text: str) -> None:
    for check in (check_name, check_tag):
        with contextlib.suppress(InvalidReference):
            assert check(text) == text
    number = parse_version(text)
    assert number is None or f"v{number}" == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bot", Reference("bot")),
        ("b", Reference("b")),
        ("SmolLM2-135M.v1_x", Reference("SmolLM2-135M.v1_x")),
        ("v3", Reference("v3")),
        ("bot:prod", Reference("bot", tag="prod")),
        ("bot:v3", Reference("bot", version=3)),
        ("bot:v3x", Reference("bot", tag="v3x")),
        ("bot:v0", Reference("bot", tag="v0")),
        ("bot@sha256:0123abcd", Reference("bot", digest="sha256:0123abcd")),
    ],
)
def test_examples(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " bot",
        "bot ",
        "bot\n",
        "bot:prod\n",
        "bot:v3\n",
        "bot:",
        ":prod",
        "bot@",
        "@sha256:01234567",
        "bot@sha256:0123456",
        "bot@sha256:0123ABCD",
        "bot@sha256:01234567\n",
        "bot@md5:01234567",
        "bot:prod@sha256:01234567",
        "bot:a:b",
        "../../etc/passwd",
        "a/b",
        ".bot",
        "bot.",
        "-bot",
        "böt",
        "bot٣",
        "bot:3",
        "x" * 129,
        "x" * 257,
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)
