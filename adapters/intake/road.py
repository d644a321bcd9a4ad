"""RoAd: a module's outputs are rotated and scaled in pairs, i with i + half in every group:
y' = c ⊙ y + s ⊙ rot(y), where rot turns the halves (a, b) of a group into (−b, a)
(peft/tuners/road/layer.py, _prepare_cols and _apply_road). Weight and bias alike.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake import tensors
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import target_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, has_bias, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("road_theta", "road_alpha")
# How many angles there are for two outputs.
_ANGLES = {"road_1": 1, "road_2": 2, "road_4": 4}


def plan_road(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    variant, group = _parsed(raw.config)
    tuner = RuleTuner(
        title="RoAd",
        parts=_PARTS,
        settings=target_settings(raw.config),
        rule=partial(_rule, variant, group, base),
        config=lambda modules: {"variant": variant, "group_size": group},
        scale="angles and lengths of pairs of outputs",
    )
    return plan_rules(raw, base, tuner)


def _rule(variant: str, group: int, base: BaseDescriptor, spec: ModuleSpec) -> Rule:
    if spec.out_features % group:
        raise InvalidConfig(
            f"adapter_config.json: group_size is {group}, which does not divide the "
            f"{spec.out_features} outputs of '{spec.name}'"
        )
    shape = (spec.out_features * _ANGLES[variant] // 2,)
    change = Change(_PARTS, partial(_turned, variant, group))
    changes = {"weight": change, "bias": change} if has_bias(base, spec) else {"weight": change}
    return Rule(dict.fromkeys(_PARTS, shape), changes)


def _turned(
    variant: str, group: int, old: torch.Tensor, theta: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    rows = old.reshape(old.shape[0], -1)
    straight, across = _factors(variant, group, theta, alpha)
    halves = rows.reshape(-1, 2, group // 2, rows.shape[1])
    rotated = tensors.stacked([-halves[:, 1:], halves[:, :1]], 1).reshape(rows.shape)
    return (rows * straight[:, None] + rotated * across[:, None]).reshape(old.shape)


def _factors(
    variant: str, group: int, theta: torch.Tensor, alpha: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """c and s of every output: of both halves of a group alike (road_1), each its own (road_2),
    or from angles and lengths of their own (road_4)."""
    if variant == "road_4":
        angles, lengths = theta.reshape(-1, 2, group), alpha.reshape(-1, 2, group)
        straight = lengths[:, 0] * angles[:, 0].cos()
        return straight.reshape(-1), (lengths[:, 1] * angles[:, 1].sin()).reshape(-1)
    if variant == "road_1":
        half = group // 2
        theta = theta.reshape(-1, half).repeat_interleave(2, dim=0).reshape(-1)
        alpha = alpha.reshape(-1, half).repeat_interleave(2, dim=0).reshape(-1)
    return alpha * theta.cos(), alpha * theta.sin()


def _parsed(config: Mapping[str, Any]) -> tuple[str, int]:
    variant = config.get("variant", "road_1")
    if not isinstance(variant, str) or variant not in _ANGLES:
        raise InvalidConfig(
            f"adapter_config.json: variant is {reprlib.repr(variant)}; RoAd knows "
            f"{', '.join(_ANGLES)}"
        )
    group = whole_number(config, "group_size", 64, 2)
    if group % 2:
        raise InvalidConfig(f"adapter_config.json: group_size is {group}; it must be even")
    return variant, group
