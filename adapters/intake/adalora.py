"""AdaLoRA as plain LoRA: ΔW = alpha / (init_r + 1e-5) · B · diag(E) · A, of the rank that is left.

After training some ranks of a module are pruned; `rank_pattern` keeps which. PEFT still divides by
the rank before (peft/tuners/adalora/model.py, resize_modules_by_rank_pattern: "The scaling is
exactly as the previous"), so the divisor is init_r everywhere.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.lora import LoraPlan
from adapters.intake.mapping import strip_prefix
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

# peft/tuners/adalora/layer.py: ranknum + 1e-5.
_EPSILON = 1e-5


def plan_adalora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, rank="init_r", patterns=False)
    scale = settings.alpha / (settings.rank + _EPSILON)
    left = _ranks_left(raw.config.get("rank_pattern"), settings.rank)

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank = left.get(spec.name, settings.rank)
        return Rewrite(
            rank=rank,
            shapes={
                "lora_A": (rank, spec.in_features),
                "lora_B": (spec.out_features, rank),
                "lora_E": (rank, 1),
            },
            a=Factor(("lora_A",), _same),
            b=Factor(("lora_B", "lora_E"), partial(_b, scale)),
        )

    tuner = Tuner(
        title="AdaLoRA",
        parts=("lora_A", "lora_B", "lora_E"),
        settings=settings,
        scale=f"alpha/init_r = {settings.alpha:g}/{settings.rank} = {scale:g}",
        rewrite=rewrite,
        kinds=frozenset({"linear", "conv1d"}),
    )
    return plan_rewriting(raw, base, tuner)


def _same(a: torch.Tensor) -> torch.Tensor:
    return a


def _b(scale: float, b: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return b * e.T * scale


def _ranks_left(pattern: Any, rank: int) -> Mapping[str, int]:
    """Module -> ranks that are left, from the config's masks."""
    if pattern is None:
        return {}
    if not isinstance(pattern, dict):
        raise InvalidConfig("adapter_config.json: rank_pattern must map names to lists of booleans")
    found = {}
    for name, mask in pattern.items():
        if (
            not isinstance(mask, list)
            or len(mask) != rank
            or not all(isinstance(item, bool) for item in mask)
        ):
            raise InvalidConfig(
                f"adapter_config.json: rank_pattern['{name}'] is {reprlib.repr(mask)}; in AdaLoRA "
                f"it is a list of init_r = {rank} booleans"
            )
        found[strip_prefix(name).partition(".lora_E")[0]] = sum(mask)
    return found
