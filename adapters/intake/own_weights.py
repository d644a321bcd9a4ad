"""The base's own weights, for methods whose change is computed from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.bases.weights import BaseWeights
from adapters.errors import BaseNotAtHand, NotHotServable
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.rewriting import MERGE
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

Weight = Callable[[ModuleSpec], "torch.Tensor"]
_FLOATS = ("F16", "BF16", "F32", "F64")


def own_weights(base: BaseDescriptor, title: str, remedy: str = MERGE) -> Weight:
    """Reads a module's weight [out, in], in the dtype in which the base keeps it.

    The last one read is kept, as both factors of a pair want it. Raises NotHotServable, which
    names the method `title` and ends in `remedy`, when the base keeps no such floating-point
    tensor; BaseError when its files are not those that were registered. `base.directory` must be
    known by then: see `with_weights`.
    """
    weights = BaseWeights(base, Path(base.directory or ""))
    return lru_cache(maxsize=1)(partial(_read, weights, title, remedy))


def with_weights(plan: LoraPlan, base: BaseDescriptor, title: str) -> LoraPlan:
    """`plan`, which needs the base's weights: with a problem more if they are not at hand."""
    if base.directory is not None:
        return plan
    problem = BaseNotAtHand(
        f"{title} needs the base's own weights, which are not at hand; register it where the "
        "base's directory can be read"
    )
    return replace(plan, problems=(*plan.problems, problem))


def _read(weights: BaseWeights, title: str, remedy: str, spec: ModuleSpec) -> torch.Tensor:
    assert spec.kind == "linear", "planned for linear layers only"
    place = weights.place(spec.name)
    shape = (spec.out_features, spec.in_features)
    if place is None or place[1].dtype not in _FLOATS or tuple(place[1].shape) != shape:
        found = "is not stored by that name"
        if place is not None:
            found = f"is {place[1].dtype} {list(place[1].shape)}"
        raise NotHotServable(
            f"the base's weight of '{spec.name}' {found}, and {title} is computed from it; {remedy}"
        )
    return tensors.read_tensor(place[0], f"{spec.name}.weight", place[1])
