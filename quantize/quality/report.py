"""The documents of a quality report: a reference, the candidates made of it, and the judgement.

Everything is JSON and comes back from it unchanged. A figure that is None was not finite where it
was measured, or was not measured at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, FiniteFloat, JsonValue

from adapters.frozen import Frozen
from adapters.models import Origin
from quantize.formats.comparing import LayerError
from quantize.quality.measuring import Measurement
from quantize.quality.regression import RegressionScore

# The two sets of texts that every report of ours has; it may have more.
GENERAL_SET = "general"
TASK_SET = "task"


class Stage(Frozen):
    """One step of making or measuring a model. `peak_rss` in bytes (None: not measured)."""

    name: str
    seconds: FiniteFloat
    peak_rss: int | None = None


class TaskScore(Frozen):
    """One metric of one task of lm-evaluation-harness."""

    task: str
    metric: str
    value: FiniteFloat | None
    stderr: FiniteFloat | None = None
    samples: int | None = None


class ReportedModel(Frozen):
    """A model of the report. `quantization` None: 16 bits or more. `size`: bytes on disk."""

    name: str
    quantization: str | None = None
    digest: str | None = None
    size: int
    measurement: Measurement
    # The order is that of the layers.
    layer_errors: tuple[LayerError, ...] = ()
    regression: RegressionScore | None = None
    tasks: tuple[TaskScore, ...] = ()
    stages: tuple[Stage, ...] = ()


class TextSet(Frozen):
    """Where a set of texts comes from: words for people, and the file's sha256 if it is one."""

    name: str
    source: str
    sha256: str | None = None


class Lineage(Frozen):
    """One thing the candidates were made of, and as what: "base", "adapter", "calibration", …"""

    role: str
    origin: Origin


class GateResult(Frozen):
    """One gate on one candidate. `sentence` is what people are told; `text_set`, `figure` and
    `limit` are None where the gate has none. `finite` is there always, asked for or not."""

    candidate: str
    gate: Literal["finite", "max-kl", "max-ppl-increase"]
    passed: bool
    sentence: str
    text_set: str | None = None
    figure: FiniteFloat | None = None
    limit: FiniteFloat | None = None


class Reproducibility(Frozen):
    """Whether the same inputs and seed give the same digest, and what prevents it if not."""

    same_digest: bool
    prevented_by: tuple[str, ...] = ()


class QualityReport(Frozen):
    """Candidates beside the reference they were made of, on the same machine in the same run.

    `answers` of every measurement are those to `questions`, in their order.
    """

    title: str
    created: AwareDatetime
    reference: ReportedModel
    candidates: tuple[ReportedModel, ...] = Field(min_length=1)
    sets: tuple[TextSet, ...]
    questions: tuple[str, ...]
    gates: tuple[GateResult, ...] = ()
    recipe: Mapping[str, JsonValue] = Field(default_factory=dict)
    lineage: tuple[Lineage, ...] = ()
    tools: Mapping[str, str] = Field(default_factory=dict)
    # "2 cores, 7.8 GB, Linux x86-64": speeds, seconds and memory hold for it only.
    machine: str | None = None
    reproducibility: Reproducibility | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether every gate was passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def models(self) -> tuple[ReportedModel, ...]:
        """The reference, then the candidates."""
        return (self.reference, *self.candidates)


def write_report(report: QualityReport, directory: Path) -> None:
    """report.json and report.html in `directory`, each replaced as a whole; OSError as it comes."""
    # Templates and drawings are for those who write a report, not for those who read its models.
    from quantize.quality.html import render

    directory.mkdir(parents=True, exist_ok=True)
    _replace(directory / "report.json", report.model_dump_json(indent=2) + "\n")
    _replace(directory / "report.html", render(report))


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
