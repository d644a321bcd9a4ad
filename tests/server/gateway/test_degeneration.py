"""Empty, looping and broken answers; and that nothing that people write is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.gateway.answer_text import Answer, Part, read_answer
from server.gateway.degeneration import (
    CUT_OFF,
    ENDED,
    TAIL,
    Degeneration,
    degeneration,
    endless_loop,
)

ROOT = Path(__file__).parents[3]


def normal_texts() -> list[str]:
    """What people wrote: the quality corpora, this project's documentation and its code."""
    texts: list[str] = []
    for file in sorted((ROOT / "quantize/quality/data").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts += [one["content"] for one in row.get("messages", [])]
            texts += [row["text"]] if "text" in row else []
    for pattern in ("docs/**/*.md", "server/**/*.py", "deploy/**/*", "*.toml", "demo/*.py"):
        texts += [f.read_text(encoding="utf-8") for f in ROOT.glob(pattern) if f.is_file()]
    return [text for text in texts if text.strip()]


def test_no_normal_text_is_taken_for_a_loop_wherever_it_is_cut() -> None:
    texts = normal_texts()
    assert len(texts) > 200
    for text in texts:
        cuts = {len(text), *range(400, min(len(text), 40_000), 1009)}
        for cut in cuts:
            answer = Answer((Part(text[:cut]),))
            assert degeneration(answer) is None, text[max(0, cut - 200) : cut]


@pytest.mark.parametrize(
    "text",
    [
        "ha ha ha ha ha ha ha ha ha ha",
        "No, no, no, no! Never, never, never, never.",
        "\n".join(f"{n}. apples" for n in range(1, 60)),
        "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 3,
        "=" * 80 + "\nTitle\n" + "=" * 80,
        "-" * 120,
        "Row, row, row your boat, gently down the stream.\n" * 3,
        "def f():\n    return [\n" + "".join(f"        {n * n},\n" for n in range(40)) + "    ]\n",
        "Goooooooooooooooooooooooooooooooal!",
        "0" * 64,
    ],
)
def test_repetition_that_people_write_is_none(text: str) -> None:
    assert degeneration(Answer((Part(text),))) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", Degeneration.EMPTY),
        (" \n\t ", Degeneration.EMPTY),
        ("The cat sat. " * 12, Degeneration.REPEATING),
        ("Yes, I see: " + "the " * 40, Degeneration.REPEATING),
        ("a" * 200, Degeneration.REPEATING),
        ("\n" * 10 + "." * 500, Degeneration.REPEATING),
        ("Well \ufffd\ufffd then \ufffd\ufffd\ufffd", Degeneration.BROKEN_TEXT),
    ],
)
def test_what_is_no_answer(text: str, why: Degeneration) -> None:
    assert degeneration(Answer((Part("Fine."), Part(text)))) is why


def test_what_came_to_an_end_by_itself_is_a_loop_only_if_long() -> None:
    text = "The cat sat. " * 12
    assert degeneration(Answer((Part(text, stopped=True),))) is None
    assert degeneration(Answer((Part(text * 4, stopped=True),))) is Degeneration.REPEATING


def test_a_tool_call_needs_no_text() -> None:
    assert degeneration(Answer((Part("", acted=True),))) is None


def brute_force(text: str) -> tuple[int, int] | None:
    """By the definition: the shortest period with a tail long enough."""
    tail = text[-TAIL:]
    for period in range(1, len(tail) + 1):
        length = period
        while length < len(tail) and tail[-1 - length] == tail[-1 - length + period]:
            length += 1
        if length < CUT_OFF.periods * period or length < CUT_OFF.characters:
            continue
        if any(c.isalnum() for c in tail[-period:]) or length >= CUT_OFF.ornament:
            return period, length
    return None


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab .", max_size=40),
    st.text(alphabet="ab .\n", min_size=1, max_size=12),
    st.integers(0, 60),
    st.text(alphabet="ab", max_size=3),
)
def test_the_loop_is_the_one_of_the_definition(start: str, unit: str, times: int, end: str) -> None:
    text = start + unit * times + end
    found = endless_loop(text, CUT_OFF)
    assert (None if found is None else (found.period, found.length)) == brute_force(text)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=200),
    st.text(alphabet=st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=200),
    st.integers(0, 199),
)
def test_every_long_loop_is_found_wherever_it_is_cut(start: str, unit: str, cut: int) -> None:
    if not any(c.isalnum() for c in unit):
        unit += "x"
    times = max(ENDED.periods, ENDED.characters // len(unit)) + 2
    whole = unit * times
    text = start + whole[: len(whole) - cut % len(unit)]
    loop = endless_loop(text, ENDED)
    if min(len(text), TAIL) >= ENDED.periods * len(unit):
        assert loop is not None
        assert loop.period <= len(unit)
        assert text[-loop.length :] == (text[-loop.period :] * loop.length)[-loop.length :]


CHOICE = {"index": 0, "finish_reason": "length"}


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize(
    "data",
    [
        json.dumps({"choices": [{**CHOICE, "message": {"content": "Hello you"}}]}).encode(),
        json.dumps({"choices": [{**CHOICE, "text": "Hello you"}]}).encode(),
        event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        + event({"choices": [{"index": 0, "delta": {"content": "Hello "}}]})
        + event({"choices": [{**CHOICE, "delta": {"content": "you"}}]})
        + event({"choices": [], "usage": {"prompt_tokens": 1}})
        + b"data: [DONE]\n\n",
        event({"choices": [{"index": 0, "text": "Hello you"}]}) + b'data: {"choices": [{"ind',
        json.dumps(
            {
                "object": "response",
                "status": "incomplete",
                "output": [{"type": "message", "content": [{"text": "Hello you"}]}],
            }
        ).encode(),
        b"event: response.output_text.delta\n"
        + event({"type": "response.output_text.delta", "delta": "Hello you"}),
        json.dumps(
            {"type": "message", "content": [{"type": "text", "text": "Hello you"}]}
        ).encode(),
        b"event: content_block_start\n"
        + event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}})
        + event({"type": "content_block_delta", "delta": {"text": "Hello you"}}),
    ],
)
def test_the_text_of_every_route_whole_and_streamed(data: bytes) -> None:
    read = read_answer(data)
    assert read is not None
    assert [part.text for part in read.parts] == ["Hello you"]
    assert not read.parts[0].stopped
    assert read.finite


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"data": [{"embedding": [1]}]}', b'{"error": {"message": "no"}}', b"\xff\xfe"],
)
def test_what_is_no_answer_is_not_judged(data: bytes) -> None:
    assert read_answer(data) is None


@pytest.mark.parametrize(
    ("logprobs", "finite"),
    [
        ({"content": [{"token": "a", "logprob": -0.5}]}, True),
        ({"content": [{"token": "a", "logprob": None}]}, False),
        ({"content": [{"token": "a", "logprob": -9999.0}]}, False),
        ({"content": [{"token": "a", "logprob": float("nan")}]}, False),
        ({"token_logprobs": [None, -1.0]}, True),
        ({"token_logprobs": [-1.0, None]}, False),
        ({"token_logprobs": [float("-inf")]}, False),
        (None, True),
    ],
)
def test_log_probabilities_that_are_no_numbers(logprobs: Any, finite: bool) -> None:
    body = {"choices": [{**CHOICE, "message": {"content": "x"}, "logprobs": logprobs}]}
    read = read_answer(json.dumps(body).encode())
    assert read is not None
    assert read.finite is finite
    assert (degeneration(read) is Degeneration.NOT_FINITE) is not finite


def test_the_error_by_which_vllm_says_that_one_was_nan() -> None:
    message = "Out of range float values are not JSON compliant: nan"
    read = read_answer(json.dumps({"error": {"message": message, "code": 500}}).encode())
    assert read is not None
    assert degeneration(read) is Degeneration.NOT_FINITE


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: b"data: " + t.encode()))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    read = read_answer(data)
    assert read is None or degeneration(read) is not None or read.finite


KEYS = [
    *("choices", "message", "delta", "content", "output", "response", "type", "text", "object"),
    *("logprobs", "token_logprobs", "index", "content_block", "logprob"),
]


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYS),
                inner
                | st.sampled_from(["response", "message", "response.completed", "message_delta"]),
                max_size=4,
            )
        ),
        max_leaves=15,
    )
)
def test_no_document_breaks_the_reader(document: Any) -> None:
    read = read_answer(json.dumps(document).encode())
    assert read is None or isinstance(read.text, str)
