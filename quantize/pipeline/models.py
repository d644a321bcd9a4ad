"""The documents of the pipeline: what a merge job answers, what it notes on the way."""

from __future__ import annotations

from adapters.frozen import Frozen
from adapters.models import MergeRecord
from quantize.merging.models import MergeReport
from quantize.quality.report import GateResult, Stage


class Quantization(Frozen):
    """How the published weights are rounded; `method` is the checkpoint's quant_method."""

    quantizer: str
    method: str
    bits: int
    group_size: int
    symmetric: bool


class MergeResult(Frozen):
    """What `adapterctl merge` answers.

    `name`, `version`, `digest`: the new version's; where nothing was registered (--out alone, or
    beyond a gate) the adapter's that was merged. `report` is that of the weights, before they were
    quantized. `quality_report`: the directory of report.json and report.html, if there are any.
    """

    name: str
    version: str
    digest: str
    path: str
    registered: bool
    tags: tuple[str, ...] = ()
    quantization: Quantization | None
    report: MergeReport
    quality_report: str | None = None
    record: MergeRecord
    gates: tuple[GateResult, ...] = ()
    stages: tuple[Stage, ...]
    size: int
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
