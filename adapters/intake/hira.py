"""HiRA: a low-rank matrix multiplies the weight element by element: W' = W ⊙ (1 + B·A).

peft/tuners/hira/layer.py, Linear. PEFT 0.21.2 has a `rank_pattern` and does not apply it (its
dispatch_default takes `r` for every module), so every module has rank r.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import LINEAR_OR_CONV1D, Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("hira_A", "hira_B")


def plan_hira(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    tuner = RuleTuner(
        title="HiRA",
        parts=_PARTS,
        settings=settings,
        rule=partial(_rule, settings.rank),
        config=lambda modules: {"r": settings.rank},
        kinds=LINEAR_OR_CONV1D,
        scale="1",
        rank=settings.rank,
    )
    return plan_rules(raw, base, tuner)


def _rule(rank: int, spec: ModuleSpec) -> Rule:
    return Rule(
        {"hira_A": (rank, spec.in_features), "hira_B": (spec.out_features, rank)},
        {"weight": Change(_PARTS, _multiplied)},
    )


def _multiplied(old: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return old * (b @ a + 1)
