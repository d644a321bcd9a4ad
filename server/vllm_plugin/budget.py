"""How many tokens a step of a CPU engine has at most: as long as it takes, everybody waits.

vLLM's default for a CPU is 2,048 tokens. On two cores and the smallest of models a step with so
long a prompt takes two seconds, in which no stream gets a token, and of many prompts that come
together none has its first before the last one. Prompts are read in parts as well, so a smaller
step costs little (docs/adr/0024 has the figures).

vLLM's scheduler has a bound for that beside the size of its buffers, `max_num_scheduled_tokens`. It
is set here and not on the command line, since only the finished configuration says whether this
model's prompts can be read in parts: one that cannot would never be read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from vllm.platforms import current_platform

from server.engine.launch import STEP_VARIABLE

_Checking = Callable[[Any, Any], None]


def install() -> None:
    """On CPU, before a configuration is made; does nothing where the server names no bound."""
    tokens = os.environ.get(STEP_VARIABLE, "")
    platform = type(current_platform)
    original = platform.check_and_update_config.__func__
    if tokens.isdigit() and not hasattr(original, "bounds_steps"):
        platform.check_and_update_config = classmethod(bounding_steps(original, int(tokens)))


def bounding_steps(original: _Checking, tokens: int) -> _Checking:
    """CpuPlatform.check_and_update_config that also bounds a step, where nobody else has."""

    @functools.wraps(original)
    def check_and_update_config(cls: Any, config: Any) -> None:
        original(cls, config)
        step = config.scheduler_config
        # An image or the like that may not be parted needs a step that it fits in.
        parted = step.enable_chunked_prefill and not step.disable_chunked_mm_input
        if parted and step.max_num_scheduled_tokens is None:
            bound = max(tokens, step.max_num_seqs)
            step.max_num_scheduled_tokens = min(bound, step.max_num_batched_tokens)

    check_and_update_config.bounds_steps = True  # type: ignore[attr-defined]
    return check_and_update_config
