"""The text of an answer that was passed on: from the JSON or the events of OpenAI's and
Anthropic's routes, as they went to the client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# vLLM writes this for a log-probability of minus infinity, which JSON has no number for.
FLOOR = -9999.0
# ... and fails with this where one is NaN: the answer never comes.
NOT_JSON = b"Out of range float values are not JSON compliant"


@dataclass(slots=True)
class Part:
    """One of the answers that a request asked for.

    `acted`: it called a tool or refused, so a text is not missing. `stopped`: it came to an end by
    itself; False: it was cut off, or that is not known.
    """

    text: str = ""
    acted: bool = False
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """`finite`: every log-probability in it of a token that was said is a number."""

    parts: tuple[Part, ...]
    finite: bool = True

    @property
    def text(self) -> str:
        """The first of its texts."""
        return self.parts[0].text if self.parts else ""


def read_answer(data: bytes) -> Answer | None:
    """What an answer says; None where it is no answer (another route's, an error, cut short)."""
    if NOT_JSON in data:
        return Answer((), finite=False)
    reader = _Reader()
    for document in _documents(data):
        reader.take(document)
    if not reader.known:
        return None
    return Answer(tuple(reader.parts[i] for i in sorted(reader.parts)), reader.finite)


def _documents(data: bytes) -> Iterator[dict[str, Any]]:
    events = data.lstrip()[:6] in (b"event:", b"data: ")
    lines = data.split(b"\n") if events else [b"data: " + data]
    for line in lines:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        try:
            document = json.loads(line[len(b"data: ") :])
        except (ValueError, RecursionError):
            continue  # the last one, cut short by the limit on what is kept
        if isinstance(document, dict):
            yield document


@dataclass(slots=True)
class _Reader:
    parts: dict[int, Part] = field(default_factory=dict)
    finite: bool = True
    known: bool = False

    def take(self, document: dict[str, Any]) -> None:
        """One JSON answer, or one event's."""
        if isinstance(document.get("choices"), list):
            self.known = True
            for choice in document["choices"]:
                if isinstance(choice, dict):
                    self._choice(choice)
        elif document.get("object") == "response":
            self.known = True
            self._response(document)
        elif document.get("type") == "message" and isinstance(document.get("content"), list):
            self.known = True
            self._blocks(document["content"], document.get("stop_reason"))
        elif isinstance(document.get("type"), str):
            self._event(document["type"], document)

    def _part(self, index: Any = 0) -> Part:
        return self.parts.setdefault(index if isinstance(index, int) else 0, Part())

    def _choice(self, choice: dict[str, Any]) -> None:
        """Of /v1/chat/completions or /v1/completions, whole or a piece."""
        part = self._part(choice.get("index"))
        said = choice.get("message") or choice.get("delta") or {}
        if isinstance(said, dict):
            for name in ("reasoning", "reasoning_content", "content"):
                part.text += _text(said.get(name))
            part.acted |= bool(said.get("tool_calls") or said.get("refusal"))
        part.text += _text(choice.get("text"))
        part.stopped |= choice.get("finish_reason") in ("stop", "tool_calls")
        self.finite &= _finite(choice.get("logprobs"))

    def _response(self, document: dict[str, Any]) -> None:
        """Of /v1/responses: all of it is in the end of its stream once more."""
        part = self.parts[0] = Part()
        part.stopped = document.get("status") == "completed"
        for item in document.get("output") or []:
            if not isinstance(item, dict):
                continue
            part.acted |= str(item.get("type", "")).endswith("_call")
            for content in item.get("content") or []:
                if isinstance(content, dict):
                    part.text += _text(content.get("text"))
                    part.acted |= bool(content.get("refusal"))
                    self.finite &= _finite({"content": content.get("logprobs")})

    def _blocks(self, blocks: list[Any], reason: Any) -> None:
        """Of /v1/messages."""
        part = self._part()
        part.stopped = reason in ("end_turn", "stop_sequence", "tool_use")
        for block in blocks:
            if isinstance(block, dict):
                part.text += _text(block.get("thinking")) + _text(block.get("text"))
                part.acted |= block.get("type") == "tool_use"

    def _event(self, kind: str, event: dict[str, Any]) -> None:
        """Of a stream of /v1/responses or /v1/messages."""
        if kind in ("response.completed", "response.incomplete"):
            if isinstance(event.get("response"), dict):
                self.known = True
                self._response(event["response"])
        elif kind in ("response.output_text.delta", "response.reasoning_text.delta"):
            self.known = True
            self._part().text += _text(event.get("delta"))
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            self.known = True
            self._part().acted |= event["content_block"].get("type") == "tool_use"
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            delta = event["delta"]
            self._part().text += _text(delta.get("thinking")) + _text(delta.get("text"))
        elif kind == "message_delta" and isinstance(event.get("delta"), dict):
            self.known = True
            reason = event["delta"].get("stop_reason")
            self._part().stopped = reason in ("end_turn", "stop_sequence", "tool_use")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _finite(logprobs: Any) -> bool:
    """Whether what was said has log-probabilities that are numbers, where there are any.

    The first of an echoed prompt has none; alternatives that were ruled out may have -inf.
    """
    if not isinstance(logprobs, dict):
        return True
    said = logprobs.get("content")
    if isinstance(said, list):
        values = [entry.get("logprob") for entry in said if isinstance(entry, dict)]
    else:
        values = logprobs.get("token_logprobs") or []
        values = values[1:] if len(values) > 1 and values[0] is None else values
    return all(
        isinstance(value, (int, float)) and math.isfinite(value) and value > FLOOR
        for value in values
    )
