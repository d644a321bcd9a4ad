"""PEANuT as plain LoRA: ΔW = s·B·h(A·W), h an elementwise network of the base's own weight.

The network sees the weight and never the input, so at inference it is a constant factor of r rows
(peft/tuners/peanut/layer.py, _compute_delta_weight; there everything is transposed).
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig, NotServable
from adapters.intake import algebra
from adapters.intake.lora import LoraPlan
from adapters.intake.own_weights import Weight, own_weights, with_weights
from adapters.intake.peft_config import tuner_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

# PEFT bounds it not at all; papers use up to 3.
_MAX_DEPTH = 64


def plan_peanut(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`; needs the base's weights."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    depth = whole_number(raw.config, "depth", 0, 0)
    if depth > _MAX_DEPTH:
        raise InvalidConfig(f"adapter_config.json: depth is {depth}; it goes up to {_MAX_DEPTH}")
    scale = _scaling(raw.config)
    act = raw.config.get("act_fn", "relu")
    weight = own_weights(base, "PEANuT")
    rank = settings.rank
    inner = (*_layers("encoders", depth), *_layers("decoders", depth))

    def rewrite(spec: ModuleSpec) -> Rewrite:
        if not isinstance(act, str) or act not in algebra.ACTIVATIONS:
            known = ", ".join(algebra.ACTIVATIONS)
            raise NotServable(
                f"adapter_config.json: act_fn is {reprlib.repr(act)}; of PEANuT's those known here "
                f"are {known}"
            )
        return Rewrite(
            rank=rank,
            shapes={
                "peanut_A": (rank, spec.out_features),
                "peanut_B": (spec.out_features, rank),
                **dict.fromkeys(inner, (rank, rank)),
            },
            a=Factor(("peanut_A", *inner), partial(_a, weight, spec, act)),
            b=Factor(("peanut_B",), partial(_b, scale)),
        )

    tuner = Tuner(
        title="PEANuT",
        parts=(
            "peanut_A",
            "peanut_B",
            *_layers("encoders", _MAX_DEPTH),
            *_layers("decoders", _MAX_DEPTH),
        ),
        settings=settings,
        scale=f"scaling = {scale:g}",
        rewrite=rewrite,
    )
    return with_weights(plan_rewriting(raw, base, tuner), base, "PEANuT")


def _layers(which: str, count: int) -> tuple[str, ...]:
    return tuple(f"peanut_{which}.{i}" for i in range(count))


def _scaling(config: Mapping[str, Any]) -> float:
    value = config.get("scaling", 1.0)
    # No float holds a larger whole number.
    if type(value) not in (int, float) or not 0 < abs(value) < sys.float_info.max:
        raise InvalidConfig(
            f"adapter_config.json: scaling is {reprlib.repr(value)}; it must be a finite number "
            "other than 0"
        )
    return float(value)


def _a(
    weight: Weight, spec: ModuleSpec, act: str, a: torch.Tensor, *layers: torch.Tensor
) -> torch.Tensor:
    activation = algebra.ACTIVATIONS[act]
    hidden = activation(algebra.left_product(a, weight(spec)))
    depth = len(layers) // 2
    skipped = []
    for encoder in layers[:depth]:
        skipped.append(hidden)
        hidden = activation(encoder @ hidden)
    for decoder in layers[depth:]:
        hidden = activation(decoder @ hidden) + skipped.pop()
    return hidden


def _b(scale: float, b: torch.Tensor) -> torch.Tensor:
    return b * scale
