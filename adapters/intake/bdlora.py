"""BD-LoRA as plain LoRA: one of a module's factors is block-diagonal, saved without the zeros."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import describe_scale, parse_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting, tuned_modules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("lora_A", "lora_B")


def plan_bdlora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = parse_settings(raw.config)
    scales = settings.scales([spec.name for spec in base.modules])
    config = raw.config["use_bdlora"]
    if not isinstance(config, dict):
        raise InvalidConfig(
            f"adapter_config.json: use_bdlora is {reprlib.repr(config)}; it must be an object"
        )
    blocks = whole_number(config, "nblocks", 1, 1)

    def rewrite(spec: ModuleSpec) -> Rewrite:
        side = _side(config, spec.name)
        rank, scale = scales[spec.name].rank, scales[spec.name].scale
        if rank % blocks or (spec.in_features if side == "A" else spec.out_features) % blocks:
            raise InvalidConfig(
                f"adapter_config.json: use_bdlora.nblocks is {blocks}, which does not divide the "
                f"rank {rank} and the size of '{spec.name}'"
            )
        a_blocks, b_blocks = blocks if side == "A" else 1, blocks if side == "B" else 1
        return Rewrite(
            rank=rank,
            shapes={
                "lora_A": (rank, spec.in_features // a_blocks),
                "lora_B": (spec.out_features, rank // b_blocks),
            },
            a=Factor(("lora_A",), partial(_placed, a_blocks, 1.0)),
            b=Factor(("lora_B",), partial(_placed, b_blocks, scale)),
        )

    tuner = Tuner(
        title="BD-LoRA",
        parts=_PARTS,
        settings=settings,
        scale=describe_scale(settings.scales(tuned_modules(raw, _PARTS)), rslora=settings.rslora),
        rewrite=rewrite,
    )
    return plan_rewriting(raw, base, tuner)


def _placed(blocks: int, scale: float, factor: torch.Tensor) -> torch.Tensor:
    return tensors.block_diagonal(list(factor.chunk(blocks))) * scale


def _side(config: Mapping[str, Any], module: str) -> str | None:
    """Which factor is block-diagonal: PEFT looks for the patterns in the module's last name."""
    leaf = module.rpartition(".")[2]
    sides = [
        side
        for side, key in (("A", "target_modules_bd_a"), ("B", "target_modules_bd_b"))
        if any(pattern in leaf for pattern in _patterns(config, key))
    ]
    if len(sides) > 1 or (not sides and config.get("match_strict", True)):
        which = "both" if sides else "none"
        raise InvalidConfig(
            f"adapter_config.json: use_bdlora names {which} of the two factors of '{module}' as "
            "block-diagonal; PEFT wants exactly one"
        )
    return sides[0] if sides else None


def _patterns(config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidConfig(f"adapter_config.json: use_bdlora.{key} must be a list of names")
    return value
