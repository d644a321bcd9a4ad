"""LoHa as plain LoRA: ΔW = alpha/r · (W1a·W1b) ⊙ (W2a·W2b), of rank r².

An elementwise product of two sums of r outer products is a sum of r² of them: column (i, j) of B
is W1a[:, i] ⊙ W2a[:, j], row (i, j) of A is W1b[i] ⊙ W2b[j] (the Khatri-Rao product).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import describe_scale, tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting, tuned_modules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")


def plan_loha(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha="alpha")
    scales = settings.scales([spec.name for spec in base.modules])

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank, scale = scales[spec.name].rank, scales[spec.name].scale
        return Rewrite(
            rank=rank * rank,
            shapes={
                "hada_w1_a": (spec.out_features, rank),
                "hada_w1_b": (rank, spec.in_features),
                "hada_w2_a": (spec.out_features, rank),
                "hada_w2_b": (rank, spec.in_features),
            },
            a=Factor(("hada_w1_b", "hada_w2_b"), _rows),
            b=Factor(("hada_w1_a", "hada_w2_a"), partial(_columns, scale)),
        )

    tuner = Tuner(
        title="LoHa",
        parts=_PARTS,
        settings=settings,
        scale=describe_scale(settings.scales(tuned_modules(raw, _PARTS)), rslora=False),
        rewrite=rewrite,
    )
    return plan_rewriting(raw, base, tuner)


def _rows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first[:, None, :] * second[None, :, :]).reshape(-1, first.shape[1])


def _columns(scale: float, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first[:, :, None] * second[:, None, :]).reshape(first.shape[0], -1) * scale
