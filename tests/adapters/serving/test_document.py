"""serving.json: its bytes, its bounds, and what users write after --default."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidConfig, UsageError
from adapters.serving.document import (
    SamplingDefaults,
    Serving,
    check_text,
    decode,
    defaults_from,
    defaults_from_user,
)

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
DEFAULTS = st.builds(
    SamplingDefaults,
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0.01, 1),
    top_k=st.none() | st.integers(-1, 1000),
    max_tokens=st.none() | st.integers(1, 10_000),
    stop=st.none() | st.lists(TEXTS.filter(bool), min_size=1, max_size=4),
    stop_token_ids=st.none() | st.lists(st.integers(0, 10_000), min_size=1, max_size=4),
)
SERVINGS = st.builds(
    Serving,
    chat_template=st.none() | TEXTS,
    system_prompt=st.none() | TEXTS,
    defaults=DEFAULTS,
)


@given(SERVINGS)
def test_what_is_written_is_read_again_and_written_the_same(serving: Serving) -> None:
    data = serving.encode()
    assert decode(data) == serving
    assert decode(data).encode() == data


def test_the_bytes_are_what_they_are() -> None:
    serving = Serving(
        system_prompt="Sag „Ahoi“.", defaults=SamplingDefaults(top_k=20, temperature=0.5)
    )
    assert serving.encode().decode() == (
        '{\n  "defaults": {\n    "temperature": 0.5,\n    "top_k": 20\n  },\n'
        '  "system_prompt": "Sag „Ahoi“."\n}\n'
    )


@given(DEFAULTS, DEFAULTS)
def test_of_two_sayings_the_first_counts(mine: SamplingDefaults, other: SamplingDefaults) -> None:
    assert mine.over(other).said() == {**other.said(), **mine.said()}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["temperature=0.2", "max_tokens=5"], {"temperature": 0.2, "max_tokens": 5}),
        (["temperature=0"], {"temperature": 0.0}),
        (["stop=###"], {"stop": ["###"]}),
        (["stop=1"], {"stop": ["1"]}),
        (["stop={"], {"stop": ["{"]}),
        (['stop=["a","b"]'], {"stop": ["a", "b"]}),
        (["stop=a=b"], {"stop": ["a=b"]}),
        (["stop_token_ids=[2, 3]"], {"stop_token_ids": [2, 3]}),
    ],
)
def test_users_write_defaults(pairs: list[str], said: dict[str, object]) -> None:
    assert defaults_from_user(pairs).said() == said


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("temperature", "KEY=VALUE"),
        ("temprature=1", "temperature"),
        ("temperature=hot", "'temperature' input should be a valid number"),
        ("temperature=3", "less than or equal to 2"),
        ("temperature=NaN", "finite"),
        ("top_p=0", "greater than 0"),
        ("top_k=1.5", "'top_k'"),
        ("top_k=true", "'top_k'"),
        ("max_tokens=0", "greater than or equal to 1"),
        ("stop_token_ids=[-1]", "'stop_token_ids.0'"),
        ('stop=["a","b","c","d","e"]', "at most 4"),
        ("repetition_penalty=Infinity", "finite"),
    ],
)
def test_a_wrong_default_is_one_sentence(pair: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        defaults_from_user([pair])
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_bounds_are_vllms() -> None:
    """What is let through here, vLLM takes; it would answer every request with 400 otherwise."""
    from vllm import SamplingParams

    edges = {
        "temperature": (0, 2),
        "top_p": (1e-6, 1),
        "top_k": (-1, 2**31),
        "min_p": (0, 1),
        "repetition_penalty": (1e-6, 10),
        "frequency_penalty": (-2, 2),
        "presence_penalty": (-2, 2),
        "max_tokens": (1, 2**31),
        "seed": (-(2**63), 2**63 - 1),
    }
    for key, values in edges.items():
        for value in values:
            defaults_from({key: value}, "test")
            SamplingParams(**{key: value})


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_is_taken_or_refused_in_a_sentence(value: object) -> None:
    for key in SamplingDefaults.model_fields:
        try:
            json.dumps(defaults_from({key: value}, "generation_config.json").said())
        except InvalidConfig as fault:
            assert fault.message.startswith("generation_config.json: '")


def test_a_text_that_is_too_long_or_none_at_all_is_refused() -> None:
    assert check_text("ä" * 5, "it", 10) == "ä" * 5
    with pytest.raises(InvalidConfig, match="it has 12 bytes; at most 10"):
        check_text("ä" * 6, "it", 10)
    with pytest.raises(InvalidConfig, match="not valid Unicode"):
        check_text("\ud800", "it", 10)
