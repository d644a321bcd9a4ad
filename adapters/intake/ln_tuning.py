"""LayerNorm tuning: norms with weights (and biases) of their own, in place of the base's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import NotServable
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "ln_tuning_layers"


def plan_ln_tuning(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    norms = _norms(base)
    tuner = RuleTuner(
        title="LayerNorm tuning",
        parts=(f"{_PART}.weight", f"{_PART}.bias"),
        settings=target_settings(raw.config),
        rule=partial(_rule, base),
    )
    return plan_rules(raw, base, tuner, norms + base.modules)


def _norms(base: BaseDescriptor) -> tuple[ModuleSpec, ...]:
    """The modules that have parameters and are no matrix, as if they were linear of one input."""
    others = {spec.name for spec in base.modules}
    found = {
        module: shape[0]
        for name, shape in base.parameters.items()
        if (module := name.rpartition(".")[0]) not in others and len(shape) == 1
    }
    return tuple(
        ModuleSpec(name=name, kind="linear", in_features=1, out_features=size)
        for name, size in found.items()
    )


def _rule(base: BaseDescriptor, spec: ModuleSpec) -> Rule:
    if spec in base.modules:
        raise NotServable(
            f"the LayerNorm tuning replaces '{spec.name}', which is no norm but a layer of its own"
        )
    own = {
        name.rpartition(".")[2]: shape
        for name, shape in base.parameters.items()
        if name.rpartition(".")[0] == spec.name
    }
    return Rule(
        {f"{_PART}.{leaf}": shape for leaf, shape in own.items()},
        {leaf: Change((f"{_PART}.{leaf}",), _replaced) for leaf in own},
    )


def _replaced(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return new
