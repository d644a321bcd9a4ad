"""MonteCLoRA and VeLoRA: LoRA with a helper for training, which inference does not use.

MonteCLoRA samples around the factors and VeLoRA compresses activations in training only
(peft/tuners/lora/variants.py); in evaluation both compute s·B·A, so their tensors are dropped.
"""

from __future__ import annotations

import re
from dataclasses import replace

from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor

_HELPER = re.compile(r"\.lora_(monteclora_sampler|velora_embed)(\.|$)")
_REASON = "its extra tensors act in training only, and what is left is plain LoRA"


def plan_sampled(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """`plan_lora` without the tensors that only training uses."""
    kept = {name: tensor for name, tensor in raw.tensors.items() if not _HELPER.search(name)}
    plan = plan_lora(replace(raw, tensors=kept), base)
    dropped = len(raw.tensors) - len(kept)
    notes = [f"{dropped} tensors that only training uses were left out"] if dropped else []
    return replace(plan, notes=(*plan.notes, *notes), reason=_REASON)
