"""What was made, beside its reference: the report, the gates, and the answer of the job."""

from __future__ import annotations

from datetime import datetime

from adapters.frozen import Frozen
from adapters.models import MergeRecord
from quantize.pipeline.building import Made, merge_other
from quantize.pipeline.measuring import Meter, loads_and_answers
from quantize.pipeline.models import MergeResult
from quantize.pipeline.reporting import merge_record, qualities, quality_report, quantization_of
from quantize.pipeline.workshop import Workshop
from quantize.quality.gate import judge
from quantize.quality.report import QualityReport, ReportedModel

_REFERENCE = "base + adapter, merged in fp32"
_SIXTEEN_BITS = "merged, 16 bits"


class Judged(Frozen):
    """All that there is to say of the model; `refusal`: why it is not published."""

    result: MergeResult
    report: QualityReport | None
    refusal: str | None


def judged(shop: Workshop, made: Made, at: datetime) -> Judged:
    """Measure the model as far as is asked for, and judge it. A quantized one has to be loaded by
    vLLM and to answer at any rate."""
    record = merge_record(shop, made)
    if shop.plan.texts is not None:
        return _measured(shop, made, record, at)
    refusal = None
    if shop.plan.recipe is not None:
        refusal = loads_and_answers(shop)
    return Judged(result=_result(shop, made, record), report=None, refusal=refusal)


def _measured(shop: Workshop, made: Made, record: MergeRecord, at: datetime) -> Judged:
    plan, options = shop.plan, shop.plan.order.evaluate
    assert plan.texts is not None and options is not None, "asked for"
    meter = Meter(
        plan.texts,
        options,
        side=shop.side,
        work=shop.measured,
        ledger=shop.ledger,
        watch=shop.watch,
        log=shop.log,
    )
    whole = sum(shard.size for shard in plan.whole)
    reference = meter.reported(_REFERENCE, meter.reference(shop.merged, "float32"), whole)
    candidates = []
    if plan.recipe is not None:
        sixteen = meter.candidate("16-bits", shop.merged, "bfloat16")
        candidates.append(meter.reported(_SIXTEEN_BITS, sixteen, plan.parameters * 2))
    if plan.compares_weights:
        candidates.append(_with_other_weights(shop, meter))
    candidates.append(_published(shop, meter, made))
    candidate = candidates[-1]
    record = record.model_copy(update={"quality": qualities(candidate)})
    report = quality_report(shop, made, record, reference, tuple(candidates), at)
    # Gates are for what is published; the others are there to compare with.
    gates = tuple(gate for gate in judge(report, options) if gate.candidate == candidate.name)
    report = report.model_copy(update={"gates": gates})
    refusal = next((gate.sentence for gate in gates if not gate.passed), None)
    result = _result(shop, made, record).model_copy(
        update={"gates": gates, "warnings": report.warnings, "stages": candidate.stages}
    )
    return Judged(result=result, report=report, refusal=refusal)


def _with_other_weights(shop: Workshop, meter: Meter) -> ReportedModel:
    """What a merge into the base's other weights would have given, in 16 bits."""
    merged = merge_other(shop)
    measurement = meter.candidate("other-weights", shop.other, "bfloat16")
    name = f"merged into the {merged.report.base_weights.weights} weights, 16 bits"
    return meter.reported(name, measurement, shop.plan.parameters * 2)


def _published(shop: Workshop, meter: Meter, made: Made) -> ReportedModel:
    """The candidate that will be published if no gate refuses it."""
    recipe = shop.plan.recipe
    dtype = "auto" if recipe is not None else shop.plan.dtype
    measurement = meter.candidate("result", shop.model, dtype)
    return meter.reported(
        f"merged, {shop.plan.dtype}" if recipe is None else shop.plan.order.requantize,
        measurement,
        shop.model_size(),
        quantization=None if recipe is None else recipe.method,
        layers=meter.layer_errors("result", shop.model, shop.merged),
        stages=made.stages,
    )


def _result(shop: Workshop, made: Made, record: MergeRecord) -> MergeResult:
    version = shop.plan.source.version
    return MergeResult(
        name=version.adapter,
        version=version.label,
        digest=version.digest,
        path=str(shop.model),
        registered=False,
        quantization=quantization_of(shop),
        report=made.weights.report,
        record=record,
        stages=made.stages,
        size=shop.model_size(),
        notes=made.notes,
        warnings=made.weights.report.warnings,
    )
