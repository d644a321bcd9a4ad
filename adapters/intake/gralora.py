"""GraLoRA as plain LoRA of rank k·r (+ hybrid_r): k × k blocks of ΔW, each of rank r/k.

The block from input block n to output block m is B[m, ranks of n] · A[n, ranks of m]; put side by
side, each in its own place, they are one pair. A hybrid adapter has a plain pair besides.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import tuner_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general")


def plan_gralora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha="alpha", patterns=False)
    blocks = whole_number(raw.config, "gralora_k", 2, 1)
    hybrid = whole_number(raw.config, "hybrid_r", 0, 0)
    if settings.rank % blocks:
        raise InvalidConfig(
            f"adapter_config.json: r is {settings.rank}, which gralora_k = {blocks} does not divide"
        )
    whole = settings.rank + hybrid
    scale = settings.alpha / whole
    tuner = Tuner(
        title="GraLoRA",
        parts=_PARTS,
        settings=settings,
        scale=f"alpha/(r + hybrid_r) = {settings.alpha:g}/{whole} = {scale:g}",
        rewrite=partial(_rewrite, settings.rank, blocks, hybrid, scale),
    )
    return plan_rewriting(raw, base, tuner)


def _rewrite(rank: int, blocks: int, hybrid: int, scale: float, spec: ModuleSpec) -> Rewrite:
    if spec.in_features % blocks or spec.out_features % blocks:
        raise InvalidConfig(
            f"adapter_config.json: gralora_k is {blocks}, which does not divide the "
            f"{spec.in_features} inputs and {spec.out_features} outputs of '{spec.name}'"
        )
    shapes: dict[str, tuple[int, ...]] = {
        "gralora_A": (blocks, spec.in_features // blocks, rank),
        "gralora_B": (blocks, rank, spec.out_features // blocks),
    }
    if hybrid:
        shapes["gralora_A_general"] = (hybrid, spec.in_features)
        shapes["gralora_B_general"] = (spec.out_features, hybrid)
    general = 1 if hybrid else 0
    return Rewrite(
        rank=blocks * rank + hybrid,
        shapes=shapes,
        a=Factor(("gralora_A", *["gralora_A_general"] * general), _a),
        b=Factor(("gralora_B", *["gralora_B_general"] * general), partial(_b, scale)),
    )


def _a(a: torch.Tensor, *general: torch.Tensor) -> torch.Tensor:
    """[input block n, its inputs, (output block m, s)] to rows (m, n, s) over all inputs."""
    blocks, inputs, rank = a.shape
    inner = rank // blocks
    rows = a.reshape(blocks, inputs, blocks, inner).permute(2, 0, 3, 1)
    placed = a.new_zeros(blocks, blocks, inner, blocks, inputs)
    for block in range(blocks):
        placed[:, block, :, block] = rows[:, block]
    return tensors.stacked([placed.reshape(blocks * rank, -1), *general], 0)


def _b(scale: float, b: torch.Tensor, *general: torch.Tensor) -> torch.Tensor:
    """[output block m, (input block n, s), its outputs] to columns (m, n, s) over all outputs."""
    return tensors.stacked([tensors.block_diagonal(list(b.mT)), *general], 1) * scale
