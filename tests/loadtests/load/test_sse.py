"""Event streams as servers really send them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from loadtests.load.sse import Event, EventLines, error_message, understand

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "text", "usage", "error", "message"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def events(stream: bytes) -> list[str]:
    lines = EventLines()
    found = [lines.feed(line) for line in stream.splitlines(keepends=True)]
    return [event for event in found if event is not None]


def test_comments_and_other_fields_are_passed_over() -> None:
    stream = (
        b": keep-alive\r\n\r\nevent: x\r\nid: 3\r\ndata: a\r\n\r\ndata:b\n\n\n\ndata: [DONE]\n\n"
    )
    assert events(stream) == ["a", "b", "[DONE]"]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=20), min_size=1))
def test_the_lines_of_one_event_are_joined(lines: list[str]) -> None:
    lines = [line.encode("utf-8", "replace").decode() for line in lines]
    stream = b"".join(b"data: " + line.encode() + b"\n" for line in lines)
    parser = EventLines()
    for line in stream.split(b"\n")[:-1]:
        assert parser.feed(line + b"\n") is None
    assert parser.rest() == "\n".join(lines)
    assert parser.feed(b"\n") == "\n".join(lines)
    assert parser.rest() is None


def chunk(**fields: Any) -> Event:
    return understand(json.dumps(fields))


def test_what_brings_text() -> None:
    assert not chunk(choices=[{"delta": {"role": "assistant", "content": ""}}]).text
    assert chunk(choices=[{"delta": {"content": "a"}}]).text
    assert chunk(choices=[{"delta": {"reasoning_content": "a"}}]).text
    assert chunk(choices=[{"delta": {"tool_calls": [{"index": 0}]}}]).text
    assert chunk(choices=[{"text": " a"}]).text
    last = chunk(choices=[{"text": "", "finish_reason": "stop"}])
    assert last.finished
    assert not last.text
    assert chunk(choices=[{"text": "b", "finish_reason": "stop"}]) == Event(True, True)


def test_usage_and_errors() -> None:
    told = chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 7})
    assert (told.prompt_tokens, told.completion_tokens) == (3, 7)
    assert chunk(error={"message": "it died"}).error == "it died"
    assert chunk(error="plain").error == "plain"
    assert "no JSON" in understand("data").error
    assert error_message({"object": "error", "message": "old shape"}) == "old shape"
    assert error_message({"detail": "FastAPI's"}) == "FastAPI's"


@given(JSON)
def test_any_json_is_understood_or_an_error(value: Any) -> None:
    assert isinstance(understand(json.dumps(value)), Event)
