"""OFT: a module's inputs are rotated, block by block: W' = W·Rᵀ with R = diag(R_1, …, R_n).

Each R_i comes from the skew-symmetric Q_i in the file, by the Cayley transform or its Neumann
series; with `block_share` there is one for all blocks; with `coft` Q_i is bounded first
(peft/tuners/oft/layer.py, OFTRotationModule).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig, NotServable
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import finite_number, flag, target_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rotations import cayley, neumann, skew, turned_inputs, within_norm
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "oft_R.weight"
# The first PEFT whose Neumann series is today's.
_SINCE = (0, 18)


@dataclass(frozen=True, slots=True)
class _Oft:
    """The checked config. `terms` None: the exact Cayley transform; `eps` None: unbounded."""

    blocks: int
    size: int
    share: bool
    eps: float | None
    terms: int | None

    def config(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"r": self.blocks, "oft_block_size": self.size}
        kept |= {"block_share": self.share, "coft": self.eps is not None}
        kept["use_cayley_neumann"] = self.terms is not None
        if self.eps is not None:
            kept["eps"] = self.eps
        if self.terms is not None:
            kept |= {"num_cayley_neumann_terms": self.terms, "peft_version": "0.18.0"}
        return kept


def plan_oft(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    oft = _parsed(raw.config)
    tuner = RuleTuner(
        title="OFT",
        parts=(_PART,),
        settings=target_settings(raw.config),
        rule=partial(_rule, oft),
        config=lambda modules: oft.config(),
        scale="rotations of blocks of inputs",
    )
    return plan_rules(raw, base, tuner)


def _rule(oft: _Oft, spec: ModuleSpec) -> Rule:
    size = _nearest_divisor(spec.in_features, oft.size) if oft.size else 0
    blocks = _nearest_divisor(spec.in_features, oft.blocks) if oft.blocks else 0
    size, blocks = size or spec.in_features // blocks, blocks or spec.in_features // size
    if size < 2:
        raise InvalidConfig(
            f"adapter_config.json: with blocks of size 1 nothing of '{spec.name}' can be rotated"
        )
    kept = 1 if oft.share else blocks
    return Rule(
        {_PART: (kept, size * (size - 1) // 2)},
        {"weight": Change((_PART,), partial(_rotated, oft, size))},
    )


def _rotated(oft: _Oft, size: int, old: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    if oft.eps is not None:
        upper = within_norm(upper, oft.eps / math.sqrt(upper.shape[0]))
    q = skew(upper, size)
    return turned_inputs(old, cayley(q) if oft.terms is None else neumann(q, oft.terms))


def _parsed(config: Mapping[str, Any]) -> _Oft:
    if "oft_block_size" not in config:
        raise InvalidConfig(
            "adapter_config.json has no 'oft_block_size': this is the OFT of PEFT before 0.14, "
            "whose tensors mean something else; merge it with that PEFT"
        )
    blocks = whole_number(config, "r", 0, 0)
    size = whole_number(config, "oft_block_size", 0, 0)
    if (blocks == 0) == (size == 0):
        raise InvalidConfig(
            f"adapter_config.json: r is {blocks} and oft_block_size is {size}; exactly one of "
            "them must be 0, the module's size gives it"
        )
    terms = None
    if flag(config, "use_cayley_neumann"):
        terms = whole_number(config, "num_cayley_neumann_terms", 5, 1)
        _check_version(config)
    eps = finite_number(config, "eps", 6e-5) if flag(config, "coft") else None
    if eps is not None and eps <= 0:
        raise InvalidConfig(f"adapter_config.json: eps is {eps:g}; it must be greater than 0")
    return _Oft(blocks, size, flag(config, "block_share"), eps, terms)


def _check_version(config: Mapping[str, Any]) -> None:
    version = config.get("peft_version")
    found = re.match(r"(\d+)\.(\d+)(?!\S*dev)", version) if isinstance(version, str) else None
    if found is None or (int(found[1]), int(found[2])) < _SINCE:
        said = f"was written by PEFT {version}" if version else "does not say which PEFT wrote it"
        raise NotServable(
            f"adapter_config.json {said}; before 0.18 PEFT's Cayley-Neumann series was another, so "
            "the same tensors gave other rotations: merge it with the PEFT that trained it"
        )


def _nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` nearest to `wanted`, the smaller of two (adjust_oft_parameters)."""
    if wanted >= number:
        return number
    above = next(i for i in range(wanted, number + 1) if number % i == 0)
    below = next(i for i in range(wanted, 0, -1) if number % i == 0)
    return below if wanted - below <= above - wanted else above
