"""Server-sent events, line by line, and what OpenAI's two streaming endpoints put into them.

The format is the WHATWG's HTML standard, section 9.2.6, as far as it matters to a client of this
API: comments, `event:`, `id:` and `retry:` are passed over, the lines of one event's `data:` are
joined.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

DONE = "[DONE]"


class EventLines:
    """Takes lines, with or without their ends; gives an event's data once it is complete."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: bytes) -> str | None:
        """The data of the event that this line ends; None: it ends none."""
        if line.startswith(b"data:"):
            text = line[5:].decode("utf-8", "replace").rstrip("\r\n")
            self._data.append(text.removeprefix(" "))
            return None
        if line.strip(b"\r\n") or not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        return data

    def rest(self) -> str | None:
        """What a stream that ends without an empty line leaves behind."""
        return "\n".join(self._data) if self._data else None


@dataclass(frozen=True, slots=True)
class Event:
    """What one event says. `text`: it brings some; `finished`: a reason to end is given."""

    text: bool = False
    finished: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""


def understand(data: str) -> Event:
    """Read a chat completion's or a completion's chunk; what is none is an error."""
    try:
        chunk = json.loads(data)
    except ValueError:
        return Event(error=f"an event that is no JSON: {data[:200]}")
    if not isinstance(chunk, dict):
        return Event(error=f"an event that is no object: {data[:200]}")
    if chunk.get("error") is not None:
        return Event(error=error_message(chunk))
    choices = chunk.get("choices")
    text = finished = False
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            text = text or _brings_text(choice)
            finished = finished or choice.get("finish_reason") is not None
    usage = chunk.get("usage")
    if not isinstance(usage, dict):
        return Event(text, finished)
    return Event(
        text, finished, _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    )


def _brings_text(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return False
    # Servers that split off a model's thinking name its field one way or the other.
    return any(delta.get(k) for k in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def error_message(body: object) -> str:
    """The sentence in an error's body, whichever of the usual shapes it has."""
    if isinstance(body, dict):
        error = body.get("error", body)
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)
        return str(error)
    return str(body)
