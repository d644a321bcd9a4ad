"""Cutting a stream into events: the result cannot depend on how the bytes arrived."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import EngineDied
from server.gateway.sse import EventStream, ModelName, Usage, error_frame

NAME = ModelName("sha256-" + "a" * 64, 'x"y\\z')


def event(text: str) -> bytes:
    document = {"model": "sha256-" + "a" * 64, "choices": [{"delta": {"content": text}}]}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


@given(
    texts=st.lists(st.text(max_size=20), max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
    strip=st.booleans(),
)
def test_any_chunking_gives_the_same_events(texts: list[str], cuts: list[int], strip: bool) -> None:
    whole = b"".join(event(text) for text in texts) + USAGE + b"data: [DONE]\n\n"
    stream = EventStream(NAME, strip_usage=strip)
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[start:end] for start, end in pairwise(edges)]
    got = b"".join(stream.feed(part) for part in parts) + stream.finish()
    expected = EventStream(NAME, strip_usage=strip).feed(whole)
    assert got == expected
    assert stream.usage == Usage(3, 2)
    assert (b'"usage":{' in got) is not strip
    said = [
        json.loads(line.removeprefix(b"data: "))
        for line in got.split(b"\n\n")
        if line.startswith(b"data: {") and b"delta" in line
    ]
    assert [document["choices"][0]["delta"]["content"] for document in said] == texts
    assert all(document["model"] == 'x"y\\z' for document in said)


def test_an_event_without_its_blank_line_is_not_lost() -> None:
    stream = EventStream(NAME, strip_usage=False)
    assert stream.feed(b"data: [DONE]") == b""
    assert stream.finish() == b"data: [DONE]"


def test_an_error_of_the_engine_is_noticed_and_names_the_reference() -> None:
    stream = EventStream(ModelName("sha256-" + "a" * 64, "pirate"), strip_usage=False)
    out = stream.feed(b'data: {"error":{"message":"sha256-' + b"a" * 64 + b' broke"}}\n\n')
    assert b"pirate broke" in out
    assert stream.failed


def test_the_responses_api_tells_its_usage_inside_the_response() -> None:
    document = {"response": {"usage": {"input_tokens": 5, "output_tokens": 6}}}
    assert Usage.of(document) == Usage(5, 6)
    assert Usage.of([]) is None
    assert Usage.of({"usage": None}) is None


def test_the_error_frame_is_one_event_in_openais_shape() -> None:
    frame = error_frame(EngineDied("gone"))
    assert frame.endswith(b"\n\n")
    assert json.loads(frame.removeprefix(b"data: "))["error"]["code"] == "engine_died"
