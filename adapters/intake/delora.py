"""DeLoRA as plain LoRA: ΔW = B · diag(λ / (r·‖A_i‖·‖B^i‖)) · A · diag(w_norm).

w_norm, the norms of the base's columns at the time of training, is saved with the adapter, and
PEFT uses the saved one (peft/tuners/delora/layer.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
# peft/tuners/delora/layer.py, forward: the norms are clamped.
_SMALLEST = 1e-4


def plan_delora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha=None)
    scales = settings.scales([spec.name for spec in base.modules])

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank = scales[spec.name].rank
        return Rewrite(
            rank=rank,
            shapes={
                "delora_A": (rank, spec.in_features),
                "delora_B": (spec.out_features, rank),
                "delora_lambda": (1,),
                "delora_w_norm": (spec.in_features,),
            },
            a=Factor(("delora_A", "delora_w_norm"), _a),
            b=Factor(("delora_B", "delora_A", "delora_lambda"), partial(_b, rank)),
        )

    tuner = Tuner(
        title="DeLoRA",
        parts=_PARTS,
        settings=settings,
        scale="per rank (lambda and the factors' norms)",
        rewrite=rewrite,
    )
    return plan_rewriting(raw, base, tuner)


def _a(a: torch.Tensor, w_norm: torch.Tensor) -> torch.Tensor:
    return a * w_norm


def _b(rank: int, b: torch.Tensor, a: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    a_norm = (a * a).sum(1).sqrt().clamp(min=_SMALLEST)
    b_norm = (b * b).sum(0).sqrt().clamp(min=_SMALLEST)
    return b * (strength / rank / (a_norm * b_norm))
