"""BEFT: something is added to a module's bias: b' = b + δ (peft/tuners/beft/layer.py)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import NotServable
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, has_bias, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "beft_bias"


def plan_beft(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    tuner = RuleTuner(
        title="BEFT",
        parts=(_PART,),
        settings=target_settings(raw.config),
        rule=partial(_rule, base),
        scale="1",
    )
    return plan_rules(raw, base, tuner)


def _rule(base: BaseDescriptor, spec: ModuleSpec) -> Rule:
    if not has_bias(base, spec):
        raise NotServable(
            f"BEFT adds to the bias of '{spec.name}', which has none in the base: neither a LoRA "
            "nor a merged model of this architecture has a place for it"
        )
    return Rule({_PART: (1, spec.out_features)}, {"bias": Change((_PART,), _added)})


def _added(old: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    return old + change.reshape(-1)
