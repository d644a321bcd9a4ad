"""FRoD: W = U·diag(λ₀)·Vᵀ with a V that modules of a kind share, and W' = U·(diag(λ) + S)·Vᵀ with
a sparse S whose places they share too (peft/tuners/frod/layer.py, get_delta_weight).

U is not saved: it are the columns of W·V⁻ᵀ, each of length 1, as PEFT computes them in fp64 and
keeps them in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import DamagedArtifact, InvalidConfig, NotServable
from adapters.intake import tensors
from adapters.intake.lora import FLOATS, load_finite
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import finite_number, flag, target_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import INTEGERS, check_tensor
from adapters.intake.rules import (
    LINEAR_OR_CONV1D,
    Change,
    Rule,
    RuleTuner,
    indices_within,
    plan_rules,
)
from adapters.intake.spectra import placed
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_OWN = ("frod_lambda_l", "frod_lambda_s_values")
_SHARED = ("frod_V", "frod_s_indices", "frod_s_size")


def plan_frod(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    if raw.config.get("save_projection") is not None and not flag(raw.config, "save_projection"):
        raise NotServable(
            "adapter_config.json: save_projection is false, so the projections that modules share "
            "were not saved; PEFT decomposes the base's weights anew, which other machines round "
            "otherwise: save the adapter with save_projection = true where it was trained"
        )
    rate = finite_number(raw.config, "sparse_rate", 0.01)
    if not 0 <= rate <= 1:
        raise InvalidConfig(f"adapter_config.json: sparse_rate is {rate:g}; it must be 0 to 1")
    own, shared = _sorted(raw)
    tuner = RuleTuner(
        title="FRoD",
        parts=_OWN,
        settings=target_settings(raw.config),
        rule=partial(_rule, rate, shared),
        config=lambda modules: {"sparse_rate": rate, "save_projection": True},
        kinds=LINEAR_OR_CONV1D,
        scale="1",
        shared={f"base_model.{name}": tensor for name, tensor in shared.items()},
    )
    return plan_rules(replace(raw, tensors=own), base, tuner)


def _sorted(raw: RawAdapter) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The modules' own tensors, and the shared ones as `frod_V.CATEGORY`, each read once."""
    own: dict[str, LazyTensor] = {}
    shared: dict[str, LazyTensor] = {}
    for name, tensor in raw.tensors.items():
        head, *rest = name.removeprefix("base_model.").split(".")
        if head not in _SHARED or not rest:
            own[name] = tensor
            continue
        stem = f"{head}.{rest[0]}"
        if stem in shared:
            raise DamagedArtifact(f"'{shared[stem].name}' and '{name}' are both {stem}")
        shared[stem] = tensor
    return own, {stem: _proved(stem, shared) for stem in shared}


def _proved(stem: str, shared: Mapping[str, LazyTensor]) -> LazyTensor:
    """The tensor, its values checked when it is read; once, as many modules read it."""
    tensor, (head, _, kind) = shared[stem], stem.partition(".")
    projection = shared.get(f"frod_V.{kind}")
    size = projection.shape[0] if projection is not None and projection.shape else 0
    if head == "frod_s_indices" and tensor.shape[:1] == (2,):
        load = partial(indices_within, tensor, (size, size), f"frod_V.{kind}")
    elif head == "frod_s_size":
        load = partial(_sized, tensor, [size, size])
    else:
        load = partial(load_finite, tensor)
    return replace(tensor, load=cache(load))


def _sized(tensor: LazyTensor, wanted: list[int]) -> torch.Tensor:
    values = tensor.load()
    if values.tolist() != wanted:
        raise DamagedArtifact(
            f"tensor '{tensor.name}' says {values.tolist()}; by the projection beside it the "
            f"places are in a matrix of size {wanted}"
        )
    return values


def _rule(rate: float, shared: Mapping[str, LazyTensor], spec: ModuleSpec) -> Rule:
    size, kind = spec.in_features, _category(spec.name)
    others = size * (size - 1)
    count = min(int(size * size * rate), others)
    if rate > 0 and others > 0:
        count = max(1, count)
    shapes = {"frod_V": (size, size), "frod_s_indices": (2, count), "frod_s_size": (2,)}
    for name, shape in shapes.items():
        tensor = shared.get(f"{name}.{kind}")
        if tensor is None:
            raise DamagedArtifact(
                f"the file has no {name}.{kind}, which '{spec.name}' shares with modules of its "
                "kind, although save_projection is true"
            )
        fault = check_tensor(tensor, shape, spec, FLOATS if name == "frod_V" else INTEGERS)
        if fault is not None:
            raise fault
    v, places = shared[f"frod_V.{kind}"], shared[f"frod_s_indices.{kind}"]
    return Rule(
        {"frod_lambda_l": (size,), "frod_lambda_s_values": (count,)},
        {"weight": Change(_OWN, partial(_recomposed, v, places))},
    )


def _recomposed(
    v: LazyTensor,
    places: LazyTensor,
    old: torch.Tensor,
    diagonal: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    size = old.shape[1]
    rows, columns = places.load().long()
    middle = placed(values, rows * size + columns, (size, size)) + diagonal.diag()
    own = v.load()
    left = tensors.unit_columns(tensors.solved(own, old.T).T)
    return left.to(old.dtype) @ middle @ own.to(old.dtype).T


def _category(name: str) -> str:
    """The modules that share: those whose last two names agree (frod, _category_from_key)."""
    parts = name.split(".")
    if len(parts) == 1:
        return name
    if parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"
