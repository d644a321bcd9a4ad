"""IA³: a learned factor for each output of a module, or for each input (feed-forward modules).

W' = l ⊙ W and b' = l ⊙ b with l [out, 1], or W' = W ⊙ l with l [1, in]
(peft/tuners/ia3/layer.py, Linear).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.merging import MergePlan
from adapters.intake.patterns import Budget, compile_pattern, matches
from adapters.intake.peft_config import names_or_pattern, target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import LINEAR_OR_CONV1D, Change, Rule, RuleTuner, has_bias, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_KEY = "feedforward_modules"


def plan_ia3(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    forward = _feedforward(raw.config, base)
    tuner = RuleTuner(
        title="IA³",
        parts=("ia3_l",),
        settings=target_settings(raw.config),
        rule=partial(_rule, forward, base),
        config=lambda modules: {_KEY: [spec.name for spec in modules if spec.name in forward]},
        kinds=LINEAR_OR_CONV1D,
        scale="a factor for each output or input",
    )
    return plan_rules(raw, base, tuner)


def _rule(forward: frozenset[str], base: BaseDescriptor, spec: ModuleSpec) -> Rule:
    weight = Change(("ia3_l",), _multiplied)
    if spec.name in forward:
        return Rule({"ia3_l": (1, spec.in_features)}, {"weight": weight})
    bias = {"bias": Change(("ia3_l",), _multiplied_bias)} if has_bias(base, spec) else {}
    return Rule({"ia3_l": (spec.out_features, 1)}, {"weight": weight, **bias})


def _multiplied(old: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return old * factor


def _multiplied_bias(old: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return old * factor.reshape(-1)


def _feedforward(config: Mapping[str, Any], base: BaseDescriptor) -> frozenset[str]:
    """The modules whose inputs are scaled; a name is any end of a module's, as in PEFT."""
    if config.get(_KEY) is None:
        raise InvalidConfig(
            f"adapter_config.json has no '{_KEY}'; without it, which factors are for inputs is "
            "unknown ([] for none)"
        )
    wanted = names_or_pattern(config, _KEY)
    if wanted is None:
        return frozenset()
    names = [spec.name for spec in base.modules]
    if isinstance(wanted, tuple):
        return frozenset(name for name in names if name.endswith(wanted))
    pattern, budget = compile_pattern(wanted, _KEY), Budget()
    return frozenset(name for name in names if matches(pattern, name, _KEY, budget, full=True))
