"""How large a change is, and how much of it rounding to the output dtype drowns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapters.frozen import Frozen
from adapters.intake import tensors
from quantize.merging.models import (
    ChangedParameter,
    ParameterDifference,
    Rounding,
    WeightsComparison,
)

if TYPE_CHECKING:
    import torch

# From here on the rounding is at least half as large as what the adapter was trained for.
DROWNING = 0.5


class Measured(Frozen):
    """Sums of squares over one parameter: of the change, of the base's values, of the rounding."""

    parameter: str
    delta: float
    before: float
    noise: float

    def changed(self) -> ChangedParameter:
        delta, before, noise = (math.sqrt(s) for s in (self.delta, self.before, self.noise))
        return ChangedParameter(
            parameter=self.parameter,
            delta=delta,
            relative=delta / before if before else None,
            noise=noise / delta if delta else None,
        )


class Compared(Frozen):
    """Sums of squares over one parameter: of the difference between the two merged models, of the
    one that was merged into the original weights."""

    parameter: str
    difference: float
    size: float

    def relative(self) -> float:
        return math.sqrt(self.difference / self.size) if self.size else 0.0


@dataclass(slots=True)
class Sums:
    """Gathers a `Measured` block by block; `measured` False: only looks for what is not finite."""

    measured: bool
    delta: float = 0.0
    before: float = 0.0
    noise: float = 0.0

    def add(self, values: torch.Tensor, rounded: torch.Tensor, before: torch.Tensor | None) -> bool:
        """False if a value is not finite after rounding.

        All are [rows, width]; `before` may have fewer rows: what was added is all change.
        """
        noise = tensors.squares(rounded.to(values.dtype) - values)
        self.noise += noise
        if not self.measured:
            return math.isfinite(noise)
        rows = 0 if before is None else before.shape[0]
        if before is not None and rows:
            self.delta += tensors.squares(values[:rows] - before)
            self.before += tensors.squares(before)
        if rows < values.shape[0]:
            self.delta += tensors.squares(values[rows:])
        return math.isfinite(noise) and math.isfinite(self.delta)

    def result(self, parameter: str) -> Measured:
        return Measured(parameter=parameter, delta=self.delta, before=self.before, noise=self.noise)


def rounding_of(measured: Iterable[Measured]) -> Rounding:
    """The rounding against the change: of all parameters, and where it is worst."""
    found = list(measured)
    delta, noise = math.fsum(m.delta for m in found), math.fsum(m.noise for m in found)
    changed = [m.changed() for m in found if m.delta]
    worst = max(changed, key=lambda item: item.noise or 0.0, default=None)
    return Rounding(overall=math.sqrt(noise / delta) if delta else 0.0, worst=worst)


def comparison_of(compared: Iterable[Compared]) -> WeightsComparison:
    """The difference of both models over all parameters, and where it is worst."""
    found = list(compared)
    difference = math.fsum(item.difference for item in found)
    size = math.fsum(item.size for item in found)
    parameters = tuple(
        ParameterDifference(parameter=item.parameter, relative=item.relative()) for item in found
    )
    return WeightsComparison(
        overall=math.sqrt(difference / size) if size else 0.0,
        worst=max(parameters, key=lambda item: item.relative, default=None),
        parameters=parameters,
    )


def drowning(rounding: Rounding, dtype: str) -> tuple[str, ...]:
    """What to warn of: one sentence with the figures, or nothing."""
    worst = rounding.worst
    if rounding.overall < DROWNING or worst is None:
        return ()
    return (
        f"rounding to {dtype} is {rounding.overall:.0%} as large as the adapter's change "
        f"({worst.noise:.0%} in {worst.parameter}), so much of it is lost: merge with "
        "--dtype float32, or serve the adapter without merging",
    )
