"""Requests with times that a test can reckon with."""

from __future__ import annotations

from typing import Any

from loadtests.load.records import Record


def record(
    due: float = 0.0, first: float = 0.1, tokens: int = 3, gap: float = 0.01, **fields: Any
) -> Record:
    """Due at `due`, its first text `first` seconds later, `tokens` tokens `gap` apart."""
    chunks = tuple(due + first + i * gap for i in range(tokens))
    given = {
        "tenant": "default",
        "index": 0,
        "model": "m",
        "due": due,
        "sent": due,
        "end": chunks[-1] if chunks else due + first,
        "warmup": False,
        "outcome": "ok",
        "prompt_tokens": 5,
        "completion_tokens": tokens,
        "chunks": chunks,
    }
    return Record.model_validate({**given, **fields})


def failed(
    due: float, outcome: str = "http_500", error: str = "it failed", **fields: Any
) -> Record:
    return record(due, tokens=0, outcome=outcome, error=error, prompt_tokens=None, **fields)
