"""MiSS as plain LoRA: the input is summed over blocks of r, then multiplied by one [r, out] block.

So A is the identity of size r side by side (cut off at the end) and B the block's transpose; in
mode `mini` the block repeats along the outputs. Mode `bat` multiplies the base's weight: full rank.
"""

from __future__ import annotations

import reprlib
from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig
from adapters.intake import tensors
from adapters.intake.bone import as_miss
from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import tuner_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch


def plan_miss(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`. Mode `bat` has a row of its own in METHODS."""
    raw = as_miss(raw)
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    mode = raw.config.get("init_weights", True)
    if not isinstance(mode, bool) and mode != "mini":
        raise InvalidConfig(
            f"adapter_config.json: init_weights is {reprlib.repr(mode)}; MiSS knows true, false, "
            "'bat' and 'mini'"
        )
    mini = whole_number(raw.config, "mini_r", 1, 1) if mode == "mini" else None
    tuner = Tuner(
        title="MiSS",
        parts=("miss_block",),
        settings=settings,
        scale="1",
        rewrite=partial(_rewrite, settings.rank, mini),
    )
    return plan_rewriting(raw, base, tuner)


def _rewrite(rank: int, mini: int | None, spec: ModuleSpec) -> Rewrite:
    if mini is not None and spec.out_features % mini:
        raise InvalidConfig(
            f"adapter_config.json: mini_r is {mini}, which does not divide the {spec.out_features} "
            f"outputs of '{spec.name}'"
        )
    if rank > spec.in_features:
        raise InvalidConfig(
            f"adapter_config.json: r is {rank}, more than the {spec.in_features} inputs of "
            f"'{spec.name}'"
        )
    width = spec.out_features if mini is None else mini
    return Rewrite(
        rank=rank,
        shapes={"miss_block": (rank, width)},
        a=Factor((), partial(_sums, rank, spec.in_features)),
        b=Factor(("miss_block",), partial(_repeated, spec.out_features // width)),
    )


def _sums(rank: int, inputs: int) -> torch.Tensor:
    return tensors.identity(rank).repeat(1, -(-inputs // rank))[:, :inputs]


def _repeated(times: int, block: torch.Tensor) -> torch.Tensor:
    return block.repeat(1, times).T
