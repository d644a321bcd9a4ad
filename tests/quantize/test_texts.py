"""Texts from JSONL: what is read, what is refused, what is sampled, how it is rendered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.errors import BaseError, UsageError
from quantize.texts import ROLES, Text, read_texts, sample, token_ids
from tests.quantize.tiny import write_tokenizer

_CHARACTERS = st.characters(exclude_categories=["Cs"])
_WORDS = st.text(_CHARACTERS, min_size=1).filter(str.strip)
_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(_CHARACTERS)})
_CHAT = st.lists(_MESSAGE, min_size=1, max_size=4)
_LINE = st.one_of(
    st.fixed_dictionaries({"text": _WORDS}),
    st.fixed_dictionaries({"messages": _CHAT, "topic": st.integers()}),
)
_SHARED = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@settings(suppress_health_check=_SHARED, max_examples=60)
@given(
    lines=st.lists(_LINE, min_size=1, max_size=4),
    escaped=st.booleans(),
    gap=st.sampled_from(["\n", "\r\n", "\n \n"]),
)
@example(lines=[{"text": "one\u2028line\x85only"}], escaped=False, gap="\n")
def test_what_was_written_is_read(
    tmp_path: Path, lines: list[dict[str, Any]], escaped: bool, gap: str
) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps(line, ensure_ascii=escaped) for line in lines]
    path.write_text(gap.join(rows), encoding="utf-8", newline="")
    expected = [Text(tuple(line.get("messages", ())), line.get("text", "")) for line in lines]
    assert read_texts(path) == tuple(expected)


@settings(suppress_health_check=_SHARED, max_examples=200)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass")),
    )
)
@example(content=b"[" * 100_000)
@example(content=b'{"text": "half of a pair \\ud800"}')
def test_any_bytes_are_texts_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    try:
        texts = read_texts(path)
    except UsageError as error:
        assert str(path) in error.message
        assert "\n" not in error.message
    else:
        assert texts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "give either"),
        ("{}", "give either"),
        ('{"text": "a", "messages": []}', "give either"),
        ('{"text": " "}', '"text" is not a text, or empty'),
        ('{"text": 3}', '"text" is not a text, or empty'),
        ('{"messages": []}', "not a list of messages"),
        ('{"messages": "hello"}', "not a list of messages"),
        ('{"messages": ["hello"]}', 'needs a "role"'),
        ('{"messages": [{"role": "pirate", "content": "ahoy"}]}', 'needs a "role"'),
        ('{"messages": [{"role": "user", "content": [1]}]}', '"content" is not a text'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "right"}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"texts\.jsonl, line 2") as refused:
        read_texts(path)
    assert said in refused.value.message


def test_a_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there is no file .*: check the path, or leave the option out"
    ):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="cannot read"):
        read_texts(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(UsageError, match="holds no texts"):
        read_texts(tmp_path / "empty.jsonl")


@given(total=st.integers(1, 40), count=st.integers(1, 45), seed=st.integers(0, 2**63))
def test_a_sample_is_the_same_for_a_seed_and_in_order(total: int, count: int, seed: int) -> None:
    texts = [Text(text=str(index)) for index in range(total)]
    chosen = sample(texts, count, seed)
    assert chosen == sample(texts, count, seed)
    assert len(chosen) == min(total, count)
    numbers = [int(text.text) for text in chosen]
    assert numbers == sorted(set(numbers))


def test_another_seed_is_another_sample() -> None:
    texts = [Text(text=str(index)) for index in range(100)]
    assert len({sample(texts, 10, seed) for seed in range(20)}) == 20
    # Fixed for good: a recipe with this seed has to mean the same texts in the next release.
    assert [int(text.text) for text in sample(texts, 5, 0)] == [35, 40, 52, 75, 97]


def test_chats_go_through_the_directory_s_own_template(model: Path) -> None:
    chat = Text(messages=({"role": "user", "content": "w5 w6"},))
    # `user` is no word of this vocabulary.
    assert token_ids(model, [chat, Text(text="w7 w8")], 100) == [[1, 0, 5, 6, 2], [7, 8]]


def test_without_a_template_a_chat_is_its_lines(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template=None)
    chat = Text(messages=({"role": "user", "content": "w5"}, {"role": "tool", "content": "w6"}))
    assert token_ids(tmp_path, [chat], 100) == [[0, 5, 0, 6]]


def test_limits_of_each_text_and_of_all(model: Path) -> None:
    texts = [Text(text=" ".join(["w9"] * 10))] * 4
    assert [len(row) for row in token_ids(model, texts, 6)] == [6, 6, 6, 6]
    assert [len(row) for row in token_ids(model, texts, 6, most=15)] == [6, 6, 3]


def test_a_template_that_refuses_is_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template="{{ raise_exception('roles must alternate') }}")
    chat = Text(messages=({"role": "user", "content": "w5"},))
    with pytest.raises(UsageError, match="begins with 'w5': roles must alternate"):
        token_ids(tmp_path, [chat], 100)


def test_a_directory_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no usable tokenizer"):
        token_ids(tmp_path, [Text(text="w5")], 100)
