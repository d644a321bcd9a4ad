"""The grammar of compositions, and the names of those that requests make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.compositions import (
    Component,
    Part,
    check_components,
    formula,
    is_composition,
    is_mix,
    mix_name,
    parse_composition,
    parse_part,
)
from adapters.errors import InvalidReference, UsageError
from adapters.references import check_name

NAMES = st.from_regex(r"[a-z][a-z0-9.-]{0,8}[a-z0-9](:prod|:v3|@sha256:12345678)?", fullmatch=True)
NUMBERS = st.floats(-100, 100).filter(lambda value: abs(value) >= 1e-4)


def parts(*pairs: tuple[str, float]) -> tuple[Part, ...]:
    return tuple(Part(reference=reference, weight=weight) for reference, weight in pairs)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a*0.7+b*0.3", parts(("a", 0.7), ("b", 0.3))),
        ("a:prod*0.7 + b@sha256:12345678*-.3", parts(("a:prod", 0.7), ("b@sha256:12345678", -0.3))),
        ("a+b", parts(("a", 1.0), ("b", 1.0))),
        ("a*2", parts(("a", 2.0))),
        ("a*1e1+b*2e-1", parts(("a", 10.0), ("b", 0.2))),
        # A name that ends in e, and a plus sign behind it.
        ("one+e+b*2", parts(("one", 1.0), ("e", 1.0), ("b", 2.0))),
    ],
)
def test_compositions_are_read(text: str, found: tuple[Part, ...]) -> None:
    assert is_composition(text)
    assert parse_composition(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "a*0.7+",
        "+a",
        "*0.7",
        "a*",
        "a*x",
        "a*nan",
        "a*inf",
        "a*0",
        "a*101",
        "a*1*2",
        "a b*1",
        "a**2",
        "a*+1",
        "a*0.00001",
        "a:*1",
        "a*1e99",
        "+".join("a" * 17),
        "+" * 5000,
    ],
)
def test_others_are_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_composition(text)


@given(st.lists(st.tuples(NAMES, NUMBERS), min_size=1, max_size=16))
def test_what_is_written_is_read_again(pairs: list[tuple[str, float]]) -> None:
    text = "+".join(f"{reference}*{weight!r}" for reference, weight in pairs)
    assert parse_composition(text) == parts(*pairs)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_composition(text)
    except InvalidReference:
        return
    assert all(part.weight != 0 for part in found)


def test_a_part_of_the_command_line() -> None:
    assert parse_part("bot:prod=-0.5") == Part(reference="bot:prod", weight=-0.5)
    assert parse_part("bot") == Part(reference="bot", weight=1.0)
    for text in ("bot=", "bot=x", "=1", "b t=1"):
        with pytest.raises(InvalidReference):
            parse_part(text)


def test_the_name_of_a_mix_depends_on_content_and_weight_only() -> None:
    a, b = Component("a:v1", "sha256:11", 0.7), Component("b:v1", "sha256:22", 0.3)
    name = mix_name([a, b])
    assert name == mix_name([b, a]) == mix_name([Component("a:prod", "sha256:11", 0.7), b])
    assert name != mix_name([Component("a:v1", "sha256:11", 0.70001), b])
    assert is_mix(name)
    assert check_name(name) == name
    assert not is_mix("mix-tape")
    assert formula([a, b]) == "0.7·a:v1 + 0.3·b:v1"


def test_one_version_is_named_once() -> None:
    a = Component("a:v1", "sha256:11", 0.7)
    with pytest.raises(UsageError, match="'a:v1' and 'b:v2' are the same version"):
        check_components([a, Component("b:v2", "sha256:11", 0.3)])
