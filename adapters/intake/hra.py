"""HRA as plain LoRA: W·H, H a product of r reflections, is W plus a change of rank r.

H = (I − 2·u1·u1ᵀ) … (I − 2·ur·urᵀ) = I − U·T·Uᵀ with T upper triangular (the compact WY form of
Householder products; Schreiber and Van Loan, 1989), so ΔW = −(W·U·T)·Uᵀ. With apply_GS the
columns are made orthonormal first and T = 2·I (peft/tuners/hra/layer.py, get_delta_weight).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import DamagedArtifact, InvalidConfig
from adapters.intake import algebra, tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.own_weights import Weight, own_weights, with_weights
from adapters.intake.peft_config import flag, tuner_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("hra_u",)
# Below this part of its length, what is left of a column is rounding and its direction noise.
_DEPENDENT = 1e-5


def plan_hra(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`; needs the base's weights."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    orthogonal = flag(raw.config, "apply_GS")
    weight = own_weights(base, "HRA")

    def rewrite(spec: ModuleSpec) -> Rewrite:
        if settings.rank > spec.in_features:
            raise InvalidConfig(
                f"adapter_config.json: r is {settings.rank}, more than the {spec.in_features} "
                f"inputs of '{spec.name}' have directions"
            )
        return Rewrite(
            rank=settings.rank,
            shapes={"hra_u": (spec.in_features, settings.rank)},
            a=Factor(_PARTS, partial(_a, spec, orthogonal)),
            b=Factor(_PARTS, partial(_b, weight, spec, orthogonal)),
        )

    tuner = Tuner(
        title="HRA", parts=_PARTS, settings=settings, scale="1 (reflections)", rewrite=rewrite
    )
    return with_weights(plan_rewriting(raw, base, tuner), base, "HRA")


def _a(spec: ModuleSpec, orthogonal: bool, u: torch.Tensor) -> torch.Tensor:
    return _directions(spec, orthogonal, u).T


def _b(weight: Weight, spec: ModuleSpec, orthogonal: bool, u: torch.Tensor) -> torch.Tensor:
    directions = _directions(spec, orthogonal, u)
    middle = tensors.identity(u.shape[1]) * 2 if orthogonal else _middle(directions)
    return -algebra.right_product(weight(spec), directions @ middle)


def _directions(spec: ModuleSpec, orthogonal: bool, u: torch.Tensor) -> torch.Tensor:
    """u's columns of length 1; with `orthogonal`, each without its part along those before."""
    found = u.clone()
    for i in range(u.shape[1]):
        column = u[:, i]
        if orthogonal:
            for j in range(i):
                column = column - (found[:, j] @ column) * found[:, j]
        length = float((column @ column) ** 0.5)
        whole = float((u[:, i] @ u[:, i]) ** 0.5)
        if whole == 0 or length <= _DEPENDENT * whole:
            raise DamagedArtifact(
                f"column {i} of hra_u of '{spec.name}' "
                + ("is zero" if whole == 0 else "depends on those before it")
                + ": its reflection has no direction, so PEFT would compute NaN or noise"
            )
        found[:, i] = column / length
    return found


def _middle(directions: torch.Tensor) -> torch.Tensor:
    """T: multiplying by one more reflection adds the column [−2·T·Uᵀ·u; 2]."""
    size = directions.shape[1]
    found = tensors.identity(size) * 2
    for i in range(1, size):
        found[:i, i] = -2 * found[:i, :i] @ (directions[:, :i].T @ directions[:, i])
    return found
