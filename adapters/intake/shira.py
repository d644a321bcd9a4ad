"""SHiRA: a few values of the weight change: ΔW is sparse, its places saved beside its values
(peft/tuners/shira/layer.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.intake.spectra import placed
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_VALUES, _PLACES = "shira_weight", "shira_indices"


def plan_shira(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    tuner = RuleTuner(
        title="SHiRA",
        parts=(_VALUES, _PLACES),
        settings=settings,
        rule=partial(_rule, settings.rank),
        # The mask is saved; PEFT draws one before it reads it, whatever it was drawn with.
        config=lambda modules: {"r": settings.rank, "mask_type": "random", "random_seed": 0},
        scale="1",
        rank=settings.rank,
    )
    return plan_rules(raw, base, tuner)


def _rule(rank: int, spec: ModuleSpec) -> Rule:
    count, values = rank * (spec.in_features + spec.out_features), spec.in_features
    if count > values * spec.out_features:
        raise InvalidConfig(
            f"adapter_config.json: r is {rank}, so {count} values of '{spec.name}' would change, "
            f"more than it has"
        )
    return Rule(
        {_VALUES: (count,), _PLACES: (2, count)},
        {"weight": Change((_VALUES,), _added, indices=(_PLACES,))},
        bounds={_PLACES: (spec.out_features, spec.in_features)},
    )


def _added(old: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    rows, columns = old.shape
    # PEFT saves int32, which cannot hold every flat place.
    flat = places[0].long() * columns + places[1].long()
    return old + placed(values, flat, (rows, columns))
