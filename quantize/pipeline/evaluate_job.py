"""An evaluate job: two models measured on the same texts, the one against the other."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path

import torch

import adapters
from adapters.errors import BaseError, UsageError
from adapters.frozen import Frozen
from adapters.jobs.orders import EvaluateOrder
from adapters.models import Origin, TextQuality
from adapters.store.job_files import LOG_NAME
from quantize.formats.comparing import LayerError
from quantize.jobs.context import JobContext, Rejected
from quantize.merging.workspace import written
from quantize.pipeline.ledger import Ledger
from quantize.pipeline.measuring import Meter
from quantize.pipeline.reporting import machine, now, qualities
from quantize.pipeline.sides import (
    Side,
    at_hand,
    check_comparable,
    check_known,
    side_of,
    size_of,
)
from quantize.pipeline.texts import evaluation_texts
from quantize.quality.gate import judge, suspicions
from quantize.quality.measuring import Measurement
from quantize.quality.report import (
    GateResult,
    Lineage,
    QualityReport,
    ReportedModel,
    TaskScore,
    write_report,
)
from quantize.quality.task_files import read_task
from quantize.quality.tasks import run_tasks
from quantize.texts import read_texts

_UNMERGED = (
    "an adapter's version is measured merged in fp32, which is what an engine that swaps it in "
    "comes nearest to"
)


# Whoever orders the job gives its own key to the server of the tasks.
_KEY_VARIABLE = "ADAPTERCTL_KEY"


class EvaluateResult(Frozen):
    """What `adapterctl evaluate` answers; `report` is the directory of report.json and .html."""

    reference: str
    against: str
    quality: tuple[TextQuality, ...]
    regression: dict[str, tuple[int, int]] | None
    tasks: tuple[TaskScore, ...] = ()
    tasks_against: tuple[TaskScore, ...] = ()
    gates: tuple[GateResult, ...]
    report: str
    warnings: tuple[str, ...]


class _Begun(Frozen):
    at: datetime


def run_evaluate(context: JobContext, order: EvaluateOrder) -> EvaluateResult:
    """Measures both sides; raises Rejected beyond a gate, with the report written all the same."""
    torch.set_num_threads(1)
    context.watch.step(f"checking {order.reference} and {order.against}")
    if order.evaluate.task is not None:
        read_texts(Path(order.evaluate.task))
    _check_tasks(order)
    candidate = side_of(context, order.reference, context.work / "candidate")
    reference = side_of(context, order.against, context.work / "against")
    ledger = Ledger(context.work, _key(order, candidate, reference))
    begun = ledger.read("begun", _Begun) or _Begun(at=now())
    ledger.note("begun", begun)
    models = at_hand(context, candidate), at_hand(context, reference)
    check_comparable(*models)
    # Before hours of measuring: a server that is not there is told at once.
    scores = {side: _scores(context, order, ledger, side) for side in (candidate, reference)}
    report = _report(context, order, ledger, (candidate, reference), begun.at)
    report = report.model_copy(
        update={
            "reference": report.reference.model_copy(update={"tasks": scores[reference]}),
            "candidates": (report.candidates[0].model_copy(update={"tasks": scores[candidate]}),),
        }
    )
    report = report.model_copy(update={"gates": judge(report, order.evaluate)})
    context.watch.step("writing the report")
    result = _written(context, order, report)
    context.watch.progress(1, 1)
    refused = next((gate for gate in report.gates if not gate.passed), None)
    if refused is not None:
        raise Rejected(refused.sentence, result)
    return result


def _report(
    context: JobContext,
    order: EvaluateOrder,
    ledger: Ledger,
    sides: tuple[Side, Side],
    at: datetime,
) -> QualityReport:
    candidate, reference = sides
    # The one that is asked about says how questions are put: it is its behaviour that is compared.
    texts = evaluation_texts(candidate.model, order.evaluate, candidate.system_prompt)
    all_texts = (texts.general, texts.task or (), texts.prompts)
    check_known(all_texts, reference.model, reference.label)
    meter = Meter(
        texts,
        order.evaluate,
        side=candidate.model,
        work=context.work / "measured",
        ledger=ledger,
        watch=context.watch,
        log=context.directory / LOG_NAME,
    )
    first = _reported(meter, reference, meter.reference(reference.model, reference.dtype))
    measured = meter.candidate("candidate", candidate.model, candidate.dtype)
    layers: tuple[LayerError, ...] = ()
    notes = [_UNMERGED] if candidate.version or reference.version else []
    try:
        layers = meter.layer_errors("candidate", candidate.model, reference.model)
    except BaseError as fault:
        notes.append(f"the weights were not compared: {fault.message}")
    second = _reported(meter, candidate, measured, layers)
    return QualityReport(
        title=f"{candidate.label} against {reference.label}",
        created=at,
        reference=first,
        candidates=(second,),
        sets=texts.sets,
        questions=texts.questions,
        lineage=tuple(
            Lineage(role=role, origin=Origin(reference=side.label, digest=side.digest))
            for role, side in (("candidate", candidate), ("against", reference))
            if side.digest is not None
        ),
        tools={"adapterctl": adapters.__version__, **measured.tools},
        machine=machine(),
        notes=tuple(notes),
        warnings=suspicions(first, (second,)),
    )


class _Scores(Frozen):
    scores: tuple[TaskScore, ...]


def _check_tasks(order: EvaluateOrder) -> None:
    for task in order.tasks:
        read_task(Path(task))
    if not order.tasks:
        return
    if order.url is None:
        raise UsageError("task files are run through a server that serves both: name it with --url")
    for text in (order.reference, order.against):
        if "/" in text:
            raise UsageError(
                f"the tasks are asked of a server, which serves no directory ({text}): name what "
                "it serves"
            )


def _scores(
    context: JobContext, order: EvaluateOrder, ledger: Ledger, side: Side
) -> tuple[TaskScore, ...]:
    """What the server's `side` scores in the order's tasks."""
    if not order.tasks or order.url is None:
        return ()
    served = side.served
    stage = f"tasks-{hashlib.sha256(served.encode()).hexdigest()[:16]}"
    known = ledger.read(stage, _Scores)
    if known is None:
        context.watch.step(f"asking {served} the tasks")
        known = _Scores(
            scores=run_tasks(
                order.url,
                served,
                [Path(task) for task in order.tasks],
                side.model,
                os.environ.get(_KEY_VARIABLE) or None,
                None,
                context.watch,
                context.directory / LOG_NAME,
            )
        )
        ledger.note(stage, known)
    return known.scores


def _reported(
    meter: Meter, side: Side, measurement: Measurement, layers: tuple[LayerError, ...] = ()
) -> ReportedModel:
    return meter.reported(
        side.label,
        measurement,
        size_of(side.model),
        quantization=side.quantization,
        digest=side.digest,
        layers=layers,
    )


def _written(context: JobContext, order: EvaluateOrder, report: QualityReport) -> EvaluateResult:
    """The report in the job's own directory, and where it was asked for."""
    places = [context.directory / "report"]
    if order.out is not None:
        places.append(Path(order.out))
    for place in places:
        with written(place):
            write_report(report, place)
    candidate = report.candidates[0]
    regression = candidate.regression
    return EvaluateResult(
        reference=order.reference,
        against=order.against,
        quality=qualities(candidate),
        regression=None if regression is None else regression.by_kind(),
        tasks=candidate.tasks,
        tasks_against=report.reference.tasks,
        gates=report.gates,
        report=str(places[-1]),
        warnings=report.warnings,
    )


def _key(order: EvaluateOrder, *sides: Side) -> str:
    """What measurements depend on; of a directory its files' sizes and times stand for them."""
    parts = [adapters.__version__, order.model_dump_json()]
    for side in sides:
        parts.append(f"{side.label} {side.digest}")
        if side.digest is None:
            stats = [(path.name, path.stat()) for path in sorted(side.model.iterdir())]
            parts += [f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in stats]
    return "\n".join(parts)
