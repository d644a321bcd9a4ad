"""The stages that make the model: merge, quantize, complete."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from adapters.bases.shards import INDEX
from adapters.frozen import Frozen
from adapters.jobs.orders import BaseWeights, Dtype
from quantize.environments import ensure
from quantize.merging.base_weights import Asked
from quantize.merging.merge import merge
from quantize.merging.models import Merged
from quantize.merging.workspace import REPORT, written
from quantize.pipeline.checking import asked
from quantize.pipeline.workshop import Workshop, put_on_disk, replaced
from quantize.quality.report import Stage
from quantize.quantizers.recipe import Quantized
from quantize.quantizers.running import run_quantizer
from quantize.quantizers.table import quantizer_of

# What a quantizer writes by itself; everything else is the merged model's.
_QUANTIZERS_OWN = ("config.json", "generation_config.json", INDEX)


class Made(Frozen):
    """What the stages that made the model have to say of it."""

    weights: Merged
    quantized: Quantized | None
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]


def made(shop: Workshop) -> Made:
    """The model in shop.model, complete, and in shop.merged in fp32 where that is needed."""
    plan = shop.plan
    weights = merge_whole(shop) if plan.needs_whole else None
    quantized = quantize(shop) if plan.recipe is not None else None
    if quantized is None:
        weights = merge_final(shop)
    assert weights is not None, "one of the two was made"
    report = weights.report
    stages = [Stage(name="merge", seconds=report.seconds, peak_rss=report.peak_rss)]
    notes = [*report.notes, *(plan.calibration.notes if plan.calibration is not None else ())]
    if quantized is not None:
        stages.append(
            Stage(name="quantize", seconds=quantized.seconds, peak_rss=quantized.peak_rss)
        )
        notes += quantized.notes
    if plan.name is not None and any("/" in name for name in plan.beside):
        notes.append(
            "files in folders are no part of a version: further chat templates are left out"
        )
    return Made(weights=weights, quantized=quantized, stages=tuple(stages), notes=tuple(notes))


def prepare_tools(shop: Workshop) -> None:
    """Makes the quantizer's environment if this is its first use: better now than after hours."""
    if shop.plan.recipe is not None:
        ensure(quantizer_of(shop.plan.recipe.quantizer).environment, shop.watch)


def merge_whole(shop: Workshop) -> Merged:
    """The merged model in fp32: what is quantized, and what others are measured against."""
    return _merge(shop, "merge-fp32", shop.merged, "float32", asked(shop.plan.order))


def merge_other(shop: Workshop) -> Merged:
    """The same, but into the base's other weights: original or dequantized."""
    wanted = asked(shop.plan.order)
    other: BaseWeights = "original" if wanted.weights == "dequantized" else "dequantized"
    checkpoint = wanted.checkpoint if other == "dequantized" else None
    return _merge(shop, "merge-other", shop.other, "float32", Asked(other, checkpoint))


def merge_final(shop: Workshop) -> Merged:
    """The merged model as it is published, where no quantizer is asked for."""
    return _merge(shop, "merge", shop.model, shop.plan.order.dtype, asked(shop.plan.order))


def quantize(shop: Workshop) -> Quantized:
    """The merged model in fp32, quantized and complete, as the one that is published."""
    plan = shop.plan
    assert plan.recipe is not None, "asked for"
    known = shop.ledger.read("quantize", Quantized)
    if known is not None:
        return known
    part = shop.place / "quantized"
    with written(plan.out or shop.model):
        shutil.rmtree(part, ignore_errors=True)
        shop.place.mkdir(exist_ok=True)
    samples = plan.calibration.samples if plan.calibration is not None else ()
    done = run_quantizer(
        plan.recipe,
        shop.merged,
        part,
        samples,
        shop.watch,
        shop.log,
        seed=plan.order.quantize.calibration.seed,
    )
    with written(plan.out or shop.model):
        for name, content in plan.beside.items():
            if name not in _QUANTIZERS_OWN:
                (part / name).parent.mkdir(exist_ok=True)
                (part / name).write_bytes(content)
        put_on_disk(part)
        replaced(part, shop.model)
        shop.ledger.note("quantize", done)
    return done


def _merge(shop: Workshop, stage: str, target: Path, dtype: Dtype | None, wanted: Asked) -> Merged:
    known = shop.ledger.read(stage, Merged)
    if known is None:
        with written(target):
            target.parent.mkdir(exist_ok=True)
        # A directory of this name is complete; whoever wrote it was killed before it was noted.
        known = _reported(target) or merge(
            shop.context.catalog,
            shop.plan.order.reference,
            target,
            dtype=dtype,
            base_weights=wanted.weights,
            nf4_checkpoint=wanted.checkpoint,
            compare_base_weights=wanted.compare,
            watch=shop.watch,
        )
        with written(target):
            put_on_disk(target)
            shop.ledger.note(stage, known)
    # The cost of a run is no part of the model.
    (target / REPORT).unlink(missing_ok=True)
    return known


def _reported(model: Path) -> Merged | None:
    try:
        return Merged.model_validate_json((model / REPORT).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
