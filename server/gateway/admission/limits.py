"""How much an engine is given at once, and how long and how many may wait for it."""

from __future__ import annotations

from dataclasses import dataclass

# Streams for each computing thread of a CPU engine. SmolLM2-135M on two: 332 tokens/s at 16
# streams, 437 at 24, 487 at 32; another's first token comes after 99, 125 and 147 ms, idle 61.
STREAMS_PER_THREAD = 12
# Prompt tokens for each thread that one tenant may have being read at a time.
PROMPT_TOKENS_PER_THREAD = 256
# vLLM's own --max-num-seqs on a CPU (vllm/engine/arg_utils.py): more would wait inside.
MOST_STREAMS_ON_CPU = 128
# Of engines with a GPU, and of those that somebody else started.
STREAMS_ELSEWHERE = 128
PROMPT_TOKENS_ELSEWHERE = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one engine's admission.

    places: sequences at the engine at once. Up to `extra` more are for tenants below their fair
        share, and as many of `places` are kept from others while such a tenant is about.
    prompt_tokens: that one tenant may have being read at a time; half of it while others are about.
    queued, queued_per_tenant: requests that wait at most; `timeout`: seconds that each waits.
    patience: seconds for which requests to adapters in slots may pass one that waits for a slot.
    recent: seconds for which a tenant is about after its last request.
    """

    places: int = 24
    prompt_tokens: int = 512
    queued: int = 1024
    queued_per_tenant: int = 256
    timeout: float = 60.0
    patience: float = 2.0
    recent: float = 60.0

    @property
    def extra(self) -> int:
        """Places above the limit for tenants below their fair share."""
        return max(1, self.places // 3)


def places_for(threads: int | None) -> int:
    """Sequences at once, for an engine on so many threads of a CPU; None: on a GPU, or unknown."""
    if threads is None:
        return STREAMS_ELSEWHERE
    return min(MOST_STREAMS_ON_CPU, STREAMS_PER_THREAD * threads)


def prompt_tokens_for(threads: int | None) -> int:
    """Prompt tokens of one tenant being read at a time, for such an engine."""
    return PROMPT_TOKENS_ELSEWHERE if threads is None else PROMPT_TOKENS_PER_THREAD * threads
