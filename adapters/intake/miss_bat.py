"""MiSS in its mode `bat`: every r × r block of the weight is multiplied and shifted:
W'_ij = W_ij + W_ij·B_i + B_i, with one B_i for each r outputs (peft/tuners/miss/layer.py,
get_delta_weight).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig
from adapters.intake.bone import as_miss
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "miss_block"


def plan_miss_bat(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    raw = as_miss(raw)
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    tuner = RuleTuner(
        title="MiSS",
        parts=(_PART,),
        settings=settings,
        rule=partial(_rule, settings.rank),
        config=lambda modules: {"r": settings.rank, "init_weights": "bat"},
        scale="1",
        rank=settings.rank,
    )
    return plan_rules(raw, base, tuner)


def _rule(rank: int, spec: ModuleSpec) -> Rule:
    if spec.in_features % rank or spec.out_features % rank:
        raise InvalidConfig(
            f"adapter_config.json: r is {rank}, which does not divide the {spec.in_features} "
            f"inputs and {spec.out_features} outputs of '{spec.name}', as mode 'bat' needs"
        )
    shape = (spec.out_features // rank, rank, rank)
    return Rule({_PART: shape}, {"weight": Change((_PART,), _changed)})


def _changed(old: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    rows, rank, _ = blocks.shape
    cut = old.reshape(rows, rank, -1, rank).transpose(1, 2)
    own = blocks[:, None]
    return (cut + cut @ own + own).transpose(1, 2).reshape(old.shape)
