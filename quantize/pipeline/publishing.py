"""The last stage: what was made becomes a version, a directory, or is kept as rejected."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from adapters.frozen import Lane
from adapters.jobs.orders import MergeOrder
from adapters.models import Manifest
from adapters.registry.merged_models import METHOD
from adapters.store.durable import fsync_directory, store_io, write_durably
from quantize.jobs.context import JobContext
from quantize.merging.workspace import REPORT, check_out, written
from quantize.pipeline.models import MergeResult
from quantize.pipeline.reporting import manifest_fields
from quantize.pipeline.workshop import Workshop, model_in, place_for, put_on_disk
from quantize.quality.report import QualityReport, write_report

_WHY = "it is a merged model, not an adapter: an engine of its own serves it"


# Beside the work directory, which goes when the job has succeeded: whoever is killed from then on
# until the registry knows finds the answer here.
_ANSWER = "answer.json"
# As write_report names them.
_QUALITY = ("report.json", "report.html")


def published(context: JobContext, order: MergeOrder) -> MergeResult | None:
    """The answer of a run that had published everything before it was killed."""
    try:
        found = MergeResult.model_validate_json((context.directory / _ANSWER).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if order.out is None:
        return found
    # Noted before the rename: it has been made if the target is there and the source is not.
    out = Path(order.out)
    moved = out.is_dir() and not model_in(place_for(context, out)).exists()
    return found if moved else None


def publish(shop: Workshop, result: MergeResult, report: QualityReport | None) -> MergeResult:
    """The model under its name: a version of the store, the directory --out, or both.

    `result` says what there is to say but for where it is. Done again after a kill it ends alike.
    """
    plan = shop.plan
    shop.watch.step("publishing")
    with written(plan.out or shop.model):
        _without_reports(shop.model)
    if plan.name is not None:
        result = _registered(shop, plan.name, result, report)
    if plan.out is not None:
        result = _at(result, plan.out, report)
        with written(plan.out):
            check_out(plan.out)
            _write_reports(shop.model, result, report)
            put_on_disk(shop.model)
            _note(shop, result)
            _move(shop.model, plan.out)
    else:
        _note(shop, result)
    return result


def _note(shop: Workshop, result: MergeResult) -> None:
    with store_io(shop.context.catalog.layout.root):
        write_durably(shop.context.directory / _ANSWER, result.model_dump_json().encode())


def keep_rejected(shop: Workshop, result: MergeResult, report: QualityReport | None) -> MergeResult:
    """What the gate refused, for who wants to look: never under the name that was asked for."""
    known = shop.ledger.read("kept", MergeResult)
    if known is not None and not shop.model.exists():
        return known
    target = _free(
        shop.context.directory / "rejected"
        if shop.plan.out is None
        else shop.plan.out.with_name(f"{shop.plan.out.name}.rejected")
    )
    result = _at(result, target, report)
    with written(target):
        _write_reports(shop.model, result, report)
        put_on_disk(shop.model)
        shop.ledger.note("kept", result)
        _move(shop.model, target)
        clear(shop)
    return result


def clear(shop: Workshop) -> None:
    """Removes what was only needed to get here; the job's own notes stay until it has ended."""
    for path in (shop.merged, shop.other, shop.place, shop.measured):
        shutil.rmtree(path, ignore_errors=True)


def _registered(
    shop: Workshop, name: str, result: MergeResult, report: QualityReport | None
) -> MergeResult:
    plan, order, catalog = shop.plan, shop.plan.order, shop.context.catalog
    fields = manifest_fields(shop, result.record, result.report)
    made = catalog.register_model(
        shop.model,
        Manifest(method=METHOD, lane=Lane.MERGED, reasons=(_WHY,), **fields),
        name=name,
        base=plan.source.version.base,
        tags=() if order.tag is None else (order.tag,),
        serving=plan.source.serving,
        # Files of a version never change; a directory of the user's own may.
        share=plan.out is None,
        actor=shop.context.actor,
    )
    where = catalog.layout.report(made.digest)
    result = _at(result, where, report).model_copy(
        update={
            "name": made.name,
            "version": made.version,
            "digest": made.digest,
            "registered": True,
            "tags": made.tags,
            "path": str(catalog.layout.blob(made.digest)),
        }
    )
    catalog.keep_report(made.digest, _report_files(shop, result, report))
    return result


def _at(result: MergeResult, where: Path, report: QualityReport | None) -> MergeResult:
    reported = None if report is None else str(where)
    return result.model_copy(update={"path": str(where), "quality_report": reported})


def _write_reports(folder: Path, result: MergeResult, report: QualityReport | None) -> None:
    (folder / REPORT).write_text(result.model_dump_json(indent=2) + "\n")
    if report is not None:
        write_report(report, folder)


def _without_reports(folder: Path) -> None:
    """What a run that was killed just before the rename has written is no part of the model."""
    for name in (REPORT, *_QUALITY, *(f".{name}.part" for name in _QUALITY)):
        (folder / name).unlink(missing_ok=True)


def _report_files(
    shop: Workshop, result: MergeResult, report: QualityReport | None
) -> Mapping[str, bytes]:
    place = shop.context.work / "report"
    with store_io(shop.context.catalog.layout.root):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        _write_reports(place, result, report)
        return {path.name: path.read_bytes() for path in place.iterdir()}


def _move(folder: Path, target: Path) -> None:
    """One rename; takes the place of an empty directory and of nothing else."""
    try:
        folder.rename(target)
    except OSError as fault:
        if fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_out(target)
        raise
    fsync_directory(target.parent)


def _free(wanted: Path) -> Path:
    """The name, or the next one that nothing has."""
    number, target = 1, wanted
    while os.path.lexists(target):
        number += 1
        target = wanted.with_name(f"{wanted.name}-{number}")
    return target
