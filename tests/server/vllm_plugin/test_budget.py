"""A step's bound: only where prompts may be read in parts, and nobody else has said one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.platforms.cpu import CpuPlatform

from server.vllm_plugin.budget import bounding_steps


@pytest.mark.parametrize(
    ("changed", "bound"),
    [
        ({}, 512),
        ({"max_num_batched_tokens": 300}, 300),
        # Every answer gets a token in every step.
        ({"max_num_seqs": 1000}, 1000),
        # vLLM's own, for what guesses tokens ahead, or the user's.
        ({"max_num_scheduled_tokens": 1900}, 1900),
        # Otherwise what is longer would never be read.
        ({"enable_chunked_prefill": False}, None),
        ({"disable_chunked_mm_input": True}, None),
    ],
)
def test_bound_of_a_step(changed: dict[str, Any], bound: int | None) -> None:
    step = {
        "enable_chunked_prefill": True,
        "disable_chunked_mm_input": False,
        "max_num_scheduled_tokens": None,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 128,
    }

    def original(cls: Any, config: Any) -> None:
        """vLLM's has the last word on whether prompts are read in parts."""
        assert cls is CpuPlatform
        vars(config.scheduler_config).update(changed)

    config = SimpleNamespace(scheduler_config=SimpleNamespace(**step))
    bounding_steps(original, 512)(CpuPlatform, config)
    assert config.scheduler_config.max_num_scheduled_tokens == bound
