"""From what was measured to the quality report and the manifest's record."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from adapters.models import MergeRecord, Origin, TextQuality
from quantize.merging.models import Merged, MergeReport
from quantize.pipeline.building import Made
from quantize.pipeline.models import Quantization
from quantize.pipeline.workshop import Workshop
from quantize.quality.gate import suspicions
from quantize.quality.report import Lineage, QualityReport, ReportedModel, Reproducibility


def merge_record(shop: Workshop, made: Made) -> MergeRecord:
    """All that the model's bytes depend on; its quality is not known yet."""
    plan = shop.plan
    order, recipe, calibration = plan.order, plan.recipe, plan.calibration
    used = calibration.used if calibration is not None else None
    tools = dict(made.weights.report.tools)
    if made.quantized is not None:
        tools |= made.quantized.tools
    return MergeRecord(
        requantize=order.requantize,
        dtype=plan.dtype,
        base_weights=order.base_weights,
        nf4_checkpoint=order.nf4_checkpoint,
        bits=recipe.bits if recipe is not None else None,
        group_size=recipe.group_size if recipe is not None else None,
        symmetric=recipe.symmetric if recipe is not None else None,
        calibration=f"sha256:{used.sha256}" if used is not None else None,
        samples=used.samples if used is not None else None,
        sample_tokens=order.quantize.calibration.tokens if used is not None else None,
        seed=used.seed if used is not None else None,
        quantization=None if recipe is None else _said(shop.model),
        tools=tools,
    )


def _said(model: Path) -> dict[str, Any]:
    """What config.json tells engines of the rounding."""
    config = json.loads((model / "config.json").read_bytes())
    return dict(config["quantization_config"])


def qualities(candidate: ReportedModel) -> tuple[TextQuality, ...]:
    """The key figures on each set of texts."""
    found = []
    for name, figures in candidate.measurement.sets.items():
        against = figures.against
        if against is None:
            continue
        found.append(
            TextQuality(
                texts=name,
                perplexity=figures.perplexity,
                reference_perplexity=against.reference_perplexity,
                kl=against.kl_mean,
                kl_p99=against.kl_p99,
                agreement=against.top1_agreement,
            )
        )
    return tuple(found)


def quality_report(
    shop: Workshop,
    made: Made,
    record: MergeRecord,
    reference: ReportedModel,
    candidates: tuple[ReportedModel, ...],
    created: datetime,
) -> QualityReport:
    """The report of a merge job, not yet judged."""
    assert shop.plan.texts is not None, "measured"
    how = "merged" if shop.plan.recipe is None else shop.plan.order.requantize.upper()
    return QualityReport(
        title=f"{shop.plan.label}, {how}",
        created=created,
        reference=reference,
        candidates=candidates,
        sets=shop.plan.texts.sets,
        questions=shop.plan.texts.questions,
        recipe=record.model_dump(mode="json", exclude={"tools", "quality", "quantization"}),
        lineage=lineage(made.weights, record),
        tools={**record.tools, **reference.measurement.tools},
        machine=machine(),
        reproducibility=Reproducibility(
            same_digest=record.not_reproducible is None,
            prevented_by=() if record.not_reproducible is None else (record.not_reproducible,),
        ),
        notes=made.notes,
        warnings=(*made.weights.report.warnings, *suspicions(reference, candidates)),
    )


def lineage(weights: Merged, record: MergeRecord) -> tuple[Lineage, ...]:
    """Base, adapter, its parts, and the calibration texts."""
    report = weights.report
    found = [
        Lineage(role="base", origin=report.base),
        Lineage(role="adapter", origin=report.adapter),
    ]
    found += [Lineage(role="part of the adapter", origin=part) for part in report.composed_from]
    if record.calibration is not None:
        texts = Origin(reference="calibration texts", digest=record.calibration)
        found.append(Lineage(role="calibration", origin=texts))
    return tuple(found)


def quantization_of(shop: Workshop) -> Quantization | None:
    """How the published weights are rounded."""
    recipe = shop.plan.recipe
    if recipe is None:
        return None
    return Quantization(
        quantizer=recipe.quantizer,
        method=recipe.method,
        bits=recipe.bits,
        group_size=recipe.group_size,
        symmetric=recipe.symmetric,
    )


def machine() -> str:
    """What speeds, seconds and memory hold for."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 1e9
    return f"{cores} cores, {memory:.1f} GB, {platform.system()} {platform.machine()}"


def now() -> datetime:
    """The moment a report is made."""
    return datetime.now(UTC).replace(microsecond=0)


def manifest_fields(shop: Workshop, record: MergeRecord, report: MergeReport) -> dict[str, Any]:
    """What the registry keeps of a merged model, as fields of a Manifest."""
    source = shop.plan.source
    return {
        "format": "hugging-face",
        "rank": None,
        "targets": (),
        "parameters": shop.plan.parameters,
        "scale": "-",
        "base_digest": source.version.base_digest,
        "base_by_trainer": source.manifest.base_by_trainer,
        "trainer": source.manifest.trainer,
        "trainer_version": source.manifest.trainer_version,
        "source": f"merge of {shop.plan.label}",
        "source_sha256": source.version.digest.removeprefix("sha256:"),
        "notes": report.notes,
        "precision": source.manifest.precision,
        "precision_evidence": source.manifest.precision_evidence,
        "registered_by": shop.context.actor,
        "merged_from": (report.base, report.adapter, *report.composed_from),
        "merged": record,
        "tensor_dtypes": (),
    }
