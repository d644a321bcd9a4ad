"""The documents of a merge: what is asked for, what is answered."""

from __future__ import annotations

from typing import Literal

from adapters.frozen import Frozen, Lane
from adapters.jobs.orders import BaseWeights
from adapters.models import Origin


class ChangedParameter(Frozen):
    """One parameter that the merge changed or added.

    Frobenius norms: `delta` is |W' - W|, `relative` that by |W| (None for one the base has not),
    `noise` what rounding W' to the output dtype changes, by `delta` (None where nothing changed).
    """

    parameter: str
    delta: float
    relative: float | None
    noise: float | None


class Rounding(Frozen):
    """How much of the change the output dtype drowns: |rounding| by |change|, all together and in
    the worst parameter (None: no parameter was changed by a finite amount)."""

    overall: float
    worst: ChangedParameter | None


class ParameterDifference(Frozen):
    """|W'(dequantized) - W'(original)| by |W'(original)|, Frobenius norms, before rounding."""

    parameter: str
    relative: float


class WeightsComparison(Frozen):
    """How far the two merged models are from each other: all changed parameters together, the
    worst of them, each of them. Where `parameters` lacks one, both models have the same."""

    overall: float
    worst: ParameterDifference | None
    parameters: tuple[ParameterDifference, ...]


class UsedWeights(Frozen):
    """Which weights of the base the adapter was added to.

    The others tell of the four bits that took part, as those merged into or to compare with:
    `rounding` nf4 or fp4, how many `parameters` they hold, from which `checkpoint` (None: the
    base's own weights).
    """

    weights: BaseWeights
    rounding: Literal["nf4", "fp4"] | None = None
    double_quantization: bool | None = None
    checkpoint: Origin | None = None
    parameters: int = 0
    compared: WeightsComparison | None = None


class MergeReport(Frozen):
    """What was merged, and what it cost. Sizes in bytes; `seconds` and `peak_rss` of this run."""

    method: str
    lane: Lane
    dtype: str
    base: Origin
    adapter: Origin
    composed_from: tuple[Origin, ...]
    base_weights: UsedWeights
    parameters_changed: int
    values_changed: int
    added: tuple[str, ...]
    resized: tuple[str, ...]
    delta: float
    relative: float | None
    rounding: Rounding
    changed: tuple[ChangedParameter, ...]
    size: int
    size_computed: int
    shards: int
    shards_resumed: int
    seconds: float
    peak_rss: int
    tools: dict[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class Merged(Frozen):
    """What `adapterctl merge` answers. `digest` is the merged version's."""

    name: str
    version: str
    digest: str
    path: str
    quantization: None = None
    report: MergeReport
