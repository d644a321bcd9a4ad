"""What admission knows of one request: whose it is, which adapter it needs, what it may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# A token written costs what two tokens read do, as in the paper that ADR 23 follows (it takes the
# ratio of OpenAI's prices); measured on a CPU a decode step costs more than that, a prefill less.
READ_WEIGHT = 1.0
WRITTEN_WEIGHT = 2.0
# Bytes of a body for one token of its prompt: English text has four, and the rest is JSON.
_BYTES_PER_TOKEN = 4
# Answers of one request that are counted: vLLM is started with VLLM_MAX_N_SEQUENCES=64.
_MOST_PLACES = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request may cost, as far as can be told before it is answered.

    `prompt_tokens` is an estimate; `max_tokens` None: it does not say. `places` are the sequences
    that the engine works on for it. `streams`: its tokens are seen as they are written.
    """

    prompt_tokens: int = 0
    max_tokens: int | None = None
    places: int = 1
    streams: bool = False

    @classmethod
    def of(cls, document: Mapping[str, Any], body_bytes: int) -> Cost:
        """From a body in any of the engine's dialects; what is malformed counts as not said."""
        said = (
            document.get(name)
            for name in ("max_completion_tokens", "max_tokens", "max_output_tokens")
        )
        limit = next((n for n in map(_count, said) if n is not None), None)
        answers = max(_count(document.get("n")) or 1, _count(document.get("best_of")) or 1)
        places = answers * _prompts(document.get("prompt", document.get("input")))
        return cls(
            prompt_tokens=max(1, body_bytes // _BYTES_PER_TOKEN),
            max_tokens=limit,
            places=min(places, _MOST_PLACES),
            streams=document.get("stream") is True,
        )


# Of a request that the model does not work for.
FREE = Cost(places=0)


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _prompts(prompt: object) -> int:
    """How many prompts a body has: a list of texts or of lists of tokens is a batch.

    The items of /v1/responses' `input` are objects: one conversation.
    """
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1


class TicketState(StrEnum):
    """`new` until offered, `queued`, `admitted` while at the engine, `done` after that."""

    NEW = "new"
    QUEUED = "queued"
    ADMITTED = "admitted"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Ticket:
    """One request before admission. `adapter`: the digest; None: the base, which needs no slot.

    The rest is the scheduler's book of it; times are on the clock that it is given, in seconds.
    """

    tenant: str
    adapter: str | None
    cost: Cost
    weight: float = 1.0
    state: TicketState = TicketState.NEW
    # Kept when it is offered once more: its place in the order.
    arrived: float = math.nan
    admitted: float = math.nan
    # Places taken at the engine.
    places: int = 0
    # Units of service charged so far, and the tokens seen of its answer.
    charged: float = 0.0
    predicted: int = 0
    written: int = 0
    # Until when its prompt counts as being read; infinite: until its first token is told.
    reading_until: float = math.nan

    @property
    def waited(self) -> float:
        """Seconds in the queue; 0 where there was room at once."""
        return max(0.0, self.admitted - self.arrived)
