"""BOFT: OFT with butterflies: W' = s ⊙ (W·Bᵀ), B = B_m ⋯ B_1, each block-diagonal once its
inputs are reordered, and s a factor for each output (peft/tuners/boft/layer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import target_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rotations import butterfly, cayley, permuted_inputs
from adapters.intake.rules import Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("boft_R", "boft_s")


@dataclass(frozen=True, slots=True)
class _Boft:
    """The checked config: one of `size` and `blocks` is 0; `factors` is how many B there are."""

    size: int
    blocks: int
    factors: int


def plan_boft(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    boft, notes = _parsed(raw)
    tuner = RuleTuner(
        title="BOFT",
        parts=_PARTS,
        settings=target_settings(raw.config),
        rule=partial(_rule, boft),
        config=lambda modules: {
            "boft_block_size": boft.size,
            "boft_block_num": boft.blocks,
            "boft_n_butterfly_factor": boft.factors,
        },
        scale="a factor for each output",
        notes=notes,
    )
    return plan_rules(raw, base, tuner)


def _rule(boft: _Boft, spec: ModuleSpec) -> Rule:
    inputs = spec.in_features
    part = boft.size or boft.blocks
    if inputs % part:
        key = "boft_block_size" if boft.size else "boft_block_num"
        raise InvalidConfig(
            f"adapter_config.json: {key} is {part}, which does not divide the {inputs} inputs of "
            f"'{spec.name}'"
        )
    size, blocks = boft.size or inputs // part, boft.blocks or inputs // part
    if boft.factors > 1 and (blocks % (1 << (boft.factors - 1)) or size % 2):
        raise InvalidConfig(
            f"adapter_config.json: boft_n_butterfly_factor is {boft.factors}, which does not go "
            f"with the {blocks} blocks of size {size} of '{spec.name}'"
        )
    return Rule(
        {"boft_R": (boft.factors, blocks, size, size), "boft_s": (spec.out_features, 1)},
        {"weight": Change(_PARTS, _rotated)},
    )


def _rotated(old: torch.Tensor, r: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    factors, blocks, size, _ = r.shape
    new = old
    for level in range(factors):
        rotation = cayley((r[level] - r[level].transpose(1, 2)) / 2)
        # With a single factor PEFT reorders nothing; at level 0 there is nothing to reorder.
        order = butterfly(old.shape[1], blocks, size, level) if level else None
        new = permuted_inputs(new, rotation, order)
    return new * s


def _parsed(raw: RawAdapter) -> tuple[_Boft, tuple[str, ...]]:
    config: Mapping[str, Any] = raw.config
    size = whole_number(config, "boft_block_size", 4, 0)
    blocks = whole_number(config, "boft_block_num", 0, 0)
    if (size == 0) == (blocks == 0):
        raise InvalidConfig(
            f"adapter_config.json: boft_block_size is {size} and boft_block_num is {blocks}; "
            "exactly one of them must be 0, the module's size gives it"
        )
    factors = whole_number(config, "boft_n_butterfly_factor", 1, 1)
    if factors > 30:
        raise InvalidConfig(
            f"adapter_config.json: boft_n_butterfly_factor is {factors}; no module has that many"
        )
    kept = [t.shape[0] for n, t in raw.tensors.items() if ".boft_R" in n and len(t.shape) == 4]
    if factors > 1 and kept and set(kept) == {1}:
        note = (
            f"boft_n_butterfly_factor is {factors} in adapter_config.json, but PEFT trained with 1 "
            "(as it does without a CUDA compiler), as the tensors show"
        )
        return _Boft(size, blocks, 1), (note,)
    return _Boft(size, blocks, factors), ()
