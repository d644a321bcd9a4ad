"""How an engine says that an output was not finite: one sentence, on every route of vLLM.

vLLM's own error documents have no room for a code of ours, so the sentence begins with a mark. It
is looked for in errors only, never in what a model wrote.
"""

from __future__ import annotations

import json
from enum import StrEnum

MARK = "adapterctl: the output is not finite"


class Fault(StrEnum):
    """Whose output it was: the base alone gives one for the same tokens, or it does not either."""

    ADAPTER = "the base's own is, for the same tokens"
    BASE = "nor is the base's own"


def sentence(fault: Fault) -> str:
    """What the engine answers in place of a text."""
    return f"{MARK} ({fault.value})"


def fault_in(message: object) -> Fault | None:
    """What an engine's error message says; None where it is about something else."""
    if not isinstance(message, str) or not message.startswith(MARK):
        return None
    return next((fault for fault in Fault if sentence(fault) == message), None)


def message_of(body: bytes) -> object:
    """The message of OpenAI's error document; None of anything else."""
    try:
        document = json.loads(body)
    except ValueError:
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error.get("message") if isinstance(error, dict) else None


def message_in_event(event: bytes) -> object:
    """The message of a server-sent event that is an error, OpenAI's, Anthropic's or Responses'."""
    for line in event.splitlines():
        if not line.startswith(b"data: {"):
            continue
        try:
            document = json.loads(line.removeprefix(b"data: "))
        except ValueError:
            continue
        error = document.get("error")
        if isinstance(error, dict):
            return error.get("message")
        if document.get("type") == "error":
            return document.get("message")
    return None


def fault_in_event(event: bytes) -> Fault | None:
    """The same of one server-sent event."""
    return fault_in(message_in_event(event))
