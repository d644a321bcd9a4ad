"""Super-Tuning: a few values of the weight change, and if there is a rank a LoRA is added:
W' = W + sparse + alpha/r · B·A (peft/tuners/supertuning/layer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig, NotServable
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import finite_number, flag, target_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.intake.spectra import placed
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_VALUES, _PLACES = "supertuning_values", "supertuning_indices"
_FACTORS = ("supertuning_lora_A.weight", "supertuning_lora_B.weight")


@dataclass(frozen=True, slots=True)
class _Super:
    """The checked config; without a LoRA `rank` is None."""

    sparsity: float
    rank: int | None
    alpha: float


def plan_supertuning(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    parsed = _parsed(raw.config)
    lora = {"r": parsed.rank, "lora_alpha": parsed.alpha} if parsed.rank is not None else {}
    tuner = RuleTuner(
        title="Super-Tuning",
        parts=(_VALUES, _PLACES, *_FACTORS),
        settings=target_settings(raw.config),
        rule=partial(_rule, parsed),
        config=lambda modules: {
            "sparsity": parsed.sparsity,
            "save_precomputed_indices": True,
            **lora,
        },
        scale=f"alpha/r = {parsed.alpha:g}/{parsed.rank}" if lora else "1",
        rank=parsed.rank,
    )
    return plan_rules(raw, base, tuner)


def _rule(parsed: _Super, spec: ModuleSpec) -> Rule:
    size = spec.in_features * spec.out_features
    # In PEFT's own arithmetic: its rounding decides how many there are.
    count = int(size * (1 - parsed.sparsity))
    if count < 1:
        raise InvalidConfig(
            f"adapter_config.json: sparsity is {parsed.sparsity:g}, which leaves none of the "
            f"{size} values of '{spec.name}'"
        )
    shapes: dict[str, tuple[int, ...]] = {_VALUES: (count,), _PLACES: (count,)}
    parts: tuple[str, ...] = (_VALUES,)
    if parsed.rank is not None:
        shapes |= {
            _FACTORS[0]: (parsed.rank, spec.in_features),
            _FACTORS[1]: (spec.out_features, parsed.rank),
        }
        parts += _FACTORS
    scale = parsed.alpha / parsed.rank if parsed.rank is not None else 0.0
    change = Change(parts, partial(_added, scale), indices=(_PLACES,))
    return Rule(shapes, {"weight": change}, bounds={_PLACES: (size,)})


def _added(
    scale: float,
    old: torch.Tensor,
    places: torch.Tensor,
    values: torch.Tensor,
    *factors: torch.Tensor,
) -> torch.Tensor:
    rows, columns = old.shape
    new = old + placed(values, places, (rows, columns))
    return new + (factors[1] @ factors[0]) * scale if factors else new


def _parsed(config: Mapping[str, Any]) -> _Super:
    saved = config.get("save_precomputed_indices")
    if saved is not None and not flag(config, "save_precomputed_indices"):
        raise NotServable(
            "adapter_config.json: save_precomputed_indices is false, so which values of the base "
            "change was not saved; PEFT looks for the largest anew, and which of equal ones it "
            "takes depends on the machine: save the adapter with it true where it was trained"
        )
    sparsity = finite_number(config, "sparsity", 0.99)
    if not 0 <= sparsity < 1:
        raise InvalidConfig(
            f"adapter_config.json: sparsity is {sparsity:g}; it must be at least 0 and less than 1"
        )
    rank = None if config.get("r") is None else whole_number(config, "r", 1, 1)
    if rank is None:
        return _Super(sparsity, None, 0.0)
    alpha = config.get("lora_alpha")
    return _Super(
        sparsity, rank, 2.0 * rank if alpha is None else finite_number(config, "lora_alpha", 0)
    )
