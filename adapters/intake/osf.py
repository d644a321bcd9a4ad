"""OSF: the weight's small singular directions are replaced: W' = W − W_low + U·diag(S)·V, where
W_low is what is left of W without its k largest singular values (peft/tuners/osf/layer.py).

PEFT takes W apart in fp32 whatever it is kept in.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake import tensors
from adapters.intake.merging import MergePlan
from adapters.intake.patterns import Budget, compile_pattern, searches
from adapters.intake.peft_config import target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, per_module, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_HEAD = "osf_svd_params"
_PARTS = (f"{_HEAD}.U_low", f"{_HEAD}.S_low", f"{_HEAD}.V_low")
_MAX_PATTERNS = 50_000


def plan_osf(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    kept = _kept(raw.config, base)
    tuner = RuleTuner(
        title="OSF",
        parts=_PARTS,
        settings=target_settings(raw.config),
        rule=partial(_rule, kept),
        config=partial(_config, kept),
        scale="1",
    )
    return plan_rules(raw, base, tuner)


def _config(kept: Mapping[str, int], modules: tuple[ModuleSpec, ...]) -> dict[str, Any]:
    rank, others = per_module(kept, modules)
    patterns = {f"^{re.escape(name)}$": own for name, own in others.items()}
    return {"effective_rank": rank, "rank_pattern": patterns}


def _rule(kept: Mapping[str, int], spec: ModuleSpec) -> Rule:
    rank, smaller = kept[spec.name], min(spec.in_features, spec.out_features)
    if not 0 < rank < smaller:
        raise InvalidConfig(
            f"adapter_config.json: by effective_rank {rank} of the {smaller} singular values of "
            f"'{spec.name}' are kept; it must be some of them and not all"
        )
    low = smaller - rank
    u, s, v = _PARTS
    return Rule(
        {u: (spec.out_features, low), s: (low,), v: (low, spec.in_features)},
        {"weight": Change(_PARTS, partial(_replaced, rank))},
    )


def _replaced(
    rank: int, old: torch.Tensor, u: torch.Tensor, s: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    return old - tensors.without_largest(old, rank) + (u * s) @ v


def _kept(config: Mapping[str, Any], base: BaseDescriptor) -> dict[str, int]:
    """How many singular values of each module stay (peft/tuners/osf/model.py, _resolve_rank)."""
    patterns = config.get("rank_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise InvalidConfig(
            f"adapter_config.json: rank_pattern is {reprlib.repr(patterns)}; it must map patterns "
            f"to ranks, at most {_MAX_PATTERNS}"
        )
    common = _rank(config.get("effective_rank"), "effective_rank")
    own = {key: _rank(value, f"rank_pattern['{key}']") for key, value in patterns.items()}
    compiled = [(key, compile_pattern(key, "rank_pattern")) for key in own]
    budget = Budget()
    found = {}
    for spec in base.modules:
        match = next(
            (k for k, p in compiled if searches(p, spec.name, "rank_pattern", budget)), None
        )
        rank = common if match is None else own[match]
        smaller = min(spec.in_features, spec.out_features)
        if rank is None:
            rank = smaller // 2
        found[spec.name] = int(smaller * rank) if isinstance(rank, float) else min(rank, smaller)
    return found


def _rank(value: Any, key: str) -> int | float | None:
    """None: half of all; a float up to 1: that part of all; else a number of them."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < 1 << 31:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; it must be a number of singular "
            "values, or the part of them, greater than 0"
        )
    return value if isinstance(value, float) and value <= 1 else int(value)
