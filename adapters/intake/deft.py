"""DEFT (and PaRa) as plain LoRA: ΔW = Q·(s·R − Dᵀ·W), a part of W's columns put another's place.

`relu`: Q = P and D = relu(P); `qr`: Q = D = the Q of P's QR, computed in fp32 as PEFT does. With
`para` there is no R (peft/tuners/deft/layer.py, get_delta_weight).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake import algebra, tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.own_weights import Weight, own_weights, with_weights
from adapters.intake.peft_config import flag, tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch


def plan_deft(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`; needs the base's weights."""
    # PEFT takes no alpha and alpha 0 alike: a scale of 1.
    alpha = "alpha" if raw.config.get("alpha") else None
    settings = tuner_settings(raw.config, alpha=alpha, patterns=False)
    removing = flag(raw.config, "para")
    orthogonal = _method(raw.config) == "qr"
    weight = own_weights(base, "DEFT")

    def rewrite(spec: ModuleSpec) -> Rewrite:
        # PEFT caps the rank without a word.
        rank = min(settings.rank, spec.out_features)
        scale = 1.0 if alpha is None else settings.alpha / rank
        shapes: dict[str, tuple[int, ...]] = {"deft_P": (spec.out_features, rank)}
        if not removing:
            shapes["deft_R"] = (rank, spec.in_features)
        return Rewrite(
            rank=rank,
            shapes=shapes,
            a=Factor(tuple(shapes), partial(_a, weight, spec, orthogonal, scale)),
            b=Factor(("deft_P",), partial(_left, orthogonal)),
        )

    tuner = Tuner(
        title="DEFT",
        parts=("deft_P", "deft_R"),
        settings=settings,
        scale="1" if alpha is None else f"alpha/r = {settings.alpha:g}/{settings.rank}",
        rewrite=rewrite,
    )
    return with_weights(plan_rewriting(raw, base, tuner), base, "DEFT")


def _method(config: Mapping[str, Any]) -> str:
    value = config.get("decomposition_method", "relu")
    if value not in ("relu", "qr"):
        raise InvalidConfig(
            f"adapter_config.json: decomposition_method is {reprlib.repr(value)}; DEFT knows "
            "'relu' and 'qr'"
        )
    return str(value)


def _left(orthogonal: bool, p: torch.Tensor) -> torch.Tensor:
    return tensors.wide(algebra.orthonormal(p.float())) if orthogonal else p


def _a(
    weight: Weight,
    spec: ModuleSpec,
    orthogonal: bool,
    scale: float,
    p: torch.Tensor,
    *r: torch.Tensor,
) -> torch.Tensor:
    right = _left(True, p) if orthogonal else p.clamp(min=0)
    removed = algebra.left_product(right.T, weight(spec))
    return r[0] * scale - removed if r else -removed
