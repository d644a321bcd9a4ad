"""LoKr as plain LoRA: ΔW = alpha/r · W1 ⊗ W2, of rank rank(W1)·rank(W2).

With W1 = U1·V1 and W2 = U2·V2, W1 ⊗ W2 = (U1 ⊗ U2)·(V1 ⊗ V2). A matrix that was trained whole is
split without rounding, into itself and the identity on its shorter side.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import BaseMismatch, InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.peft_config import describe_scale, flag, tuner_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting, tuned_modules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclass(frozen=True, slots=True)
class _Side:
    """W1 or W2, [rows, columns]: whole, or (`inner`) as a product over that dimension."""

    name: str
    rows: int
    columns: int
    inner: int | None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.name,) if self.inner is None else (f"{self.name}_a", f"{self.name}_b")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        if self.inner is None:
            return {self.name: (self.rows, self.columns)}
        a, b = self.parts
        return {a: (self.rows, self.inner), b: (self.inner, self.columns)}

    @property
    def rank(self) -> int:
        return min(self.rows, self.columns, self.inner or self.rows)

    def split(self, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """(U, V) with U·V the matrix and `rank` between them."""
        if len(parts) == 2 and self.rank == self.inner:
            return parts[0], parts[1]
        whole = parts[0] if len(parts) == 1 else parts[0] @ parts[1]
        unit = tensors.identity(self.rank)
        return (unit, whole) if self.rows <= self.columns else (whole, unit)


@dataclass(frozen=True, slots=True)
class MeasuredSides:
    """W1 and W2 of each module as the tensors have them, where no config tells their sizes."""

    by_module: Mapping[str, tuple[_Side, _Side]]

    def of(self, spec: ModuleSpec) -> tuple[_Side, _Side]:
        """Raises BaseMismatch when W1 ⊗ W2 has not the module's size."""
        first, second = self.by_module[spec.name]
        size = [first.rows * second.rows, first.columns * second.columns]
        if size != [spec.out_features, spec.in_features]:
            raise BaseMismatch(
                f"lokr_w1 and lokr_w2 of '{spec.name}' make a change of size {size}; the base's "
                f"module has [{spec.out_features}, {spec.in_features}]: the adapter was trained on "
                "another base"
            )
        return first, second


def measured_sides(modules: Mapping[str, Mapping[str, LazyTensor]]) -> MeasuredSides:
    """From each module's tensors; one that is missing or no matrix is found by the plan."""
    return MeasuredSides(
        {m: (_measured("lokr_w1", p), _measured("lokr_w2", p)) for m, p in modules.items()}
    )


def _measured(name: str, parts: Mapping[str, LazyTensor]) -> _Side:
    def size(part: str, axis: int) -> int:
        shape = parts[part].shape if part in parts else ()
        return shape[axis] if len(shape) == 2 else 0

    if name in parts:
        return _Side(name, size(name, 0), size(name, 1), None)
    return _Side(name, size(f"{name}_a", 0), size(f"{name}_b", 1), size(f"{name}_a", 1))


def plan_lokr(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha="alpha")
    scales = settings.scales([spec.name for spec in base.modules])
    factor = _factor(raw.config.get("decompose_factor", -1))
    both = flag(raw.config, "decompose_both")
    measured = raw.config.get("lokr_sides")

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank, scale = scales[spec.name].rank, scales[spec.name].scale
        if isinstance(measured, MeasuredSides):
            first, second = measured.of(spec)
        else:
            first, second = _sides(spec, rank, factor, both)
        return Rewrite(
            rank=first.rank * second.rank,
            shapes={**first.shapes, **second.shapes},
            a=Factor(first.parts + second.parts, partial(_kron, first, second, 1, 1.0)),
            b=Factor(first.parts + second.parts, partial(_kron, first, second, 0, scale)),
        )

    tuner = Tuner(
        title="LoKr",
        parts=_PARTS,
        settings=settings,
        scale=describe_scale(settings.scales(tuned_modules(raw, _PARTS)), rslora=False),
        rewrite=rewrite,
    )
    return plan_rewriting(raw, base, tuner)


def _kron(
    first: _Side, second: _Side, half: int, scale: float, *parts: torch.Tensor
) -> torch.Tensor:
    """U1 ⊗ U2 (half 0) or V1 ⊗ V2 (half 1)."""
    count = len(first.parts)
    one, two = first.split(parts[:count])[half], second.split(parts[count:])[half]
    return tensors.kronecker(one, two) * scale


def _sides(spec: ModuleSpec, rank: int, factor: int, both: bool) -> tuple[_Side, _Side]:
    """The two matrices' shapes, and which of them are products: LoKrLayer.update_layer."""
    in_small, in_large = factorization(spec.in_features, factor)
    out_small, out_large = factorization(spec.out_features, factor)
    first = rank if both and rank < max(out_small, in_small) / 2 else None
    second = rank if rank < max(out_large, in_large) / 2 else None
    return (
        _Side("lokr_w1", out_small, in_small, first),
        _Side("lokr_w2", out_large, in_large, second),
    )


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """`dimension` as a product of two, the smaller first (peft/tuners/lokr/layer.py).

    With a factor that divides it, that and the rest, in this order even if the rest is smaller;
    else the divisors nearest to each other of which the smaller is at most the factor.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    limit = dimension if factor == -1 else factor
    small = 1
    for candidate in range(2, int(dimension**0.5) + 1):
        if candidate > limit:
            break
        if dimension % candidate == 0:
            small = candidate
    return small, dimension // small


def _factor(value: Any) -> int:
    if type(value) is not int or not (value == -1 or value > 0):
        raise InvalidConfig(
            f"adapter_config.json: decompose_factor is {reprlib.repr(value)}; it must be -1 or a "
            "whole number > 0"
        )
    return value
