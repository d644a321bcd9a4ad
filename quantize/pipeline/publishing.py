"""The last stage: what was made becomes a version, a directory, or is kept as rejected."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from adapters.models import Frozen, Lane, Manifest, Registered
from adapters.registry.merged_models import METHOD
from adapters.store.durable import fsync_directory, store_io
from quantize.merging.workspace import REPORT, check_out, written
from quantize.pipeline.models import MergeResult
from quantize.pipeline.reporting import manifest_fields
from quantize.pipeline.workshop import Workshop, put_on_disk
from quantize.quality.report import QualityReport, write_report

_WHY = "it is a merged model, not an adapter: an engine of its own serves it"


class _Registered(Frozen):
    """Noted before the model leaves the job's directory."""

    made: Registered | None


def publish(shop: Workshop, result: MergeResult, report: QualityReport | None) -> MergeResult:
    """The model under its name: a version of the store, the directory --out, or both.

    `result` says what there is to say but for where it is. Done again after a kill it ends alike.
    """
    plan, catalog = shop.plan, shop.context.catalog
    shop.watch.step("publishing")
    noted = shop.ledger.read("registered", _Registered)
    made = noted.made if noted is not None else None
    if noted is None:
        if plan.name is not None:
            made = _register(shop, plan.name, result)
        shop.ledger.note("registered", _Registered(made=made))
    if made is not None:
        result = result.model_copy(
            update={
                "name": made.name,
                "version": made.version,
                "digest": made.digest,
                "registered": True,
                "tags": made.tags,
                "path": str(catalog.layout.blob(made.digest)),
            }
        )
        where = catalog.layout.report(made.digest)
        result = _kept_at(result, where if report is not None else None)
        catalog.keep_report(made.digest, _report_files(shop, result, report))
    if plan.out is not None:
        result = result.model_copy(update={"path": str(plan.out)})
        result = _kept_at(result, plan.out if report is not None else None)
        _publish_directory(shop, plan.out, result, report)
    return result


def keep_rejected(shop: Workshop, result: MergeResult, report: QualityReport | None) -> MergeResult:
    """What the gate refused, for who wants to look: never under the name that was asked for."""
    target = _free(
        shop.context.directory / "rejected"
        if shop.plan.out is None
        else shop.plan.out.with_name(f"{shop.plan.out.name}.rejected")
    )
    result = result.model_copy(update={"path": str(target)})
    result = _kept_at(result, target if report is not None else None)
    with written(target):
        _write_reports(shop.model, result, report)
        put_on_disk(shop.model)
        _move(shop.model, target)
        clear(shop)
    return result


def clear(shop: Workshop) -> None:
    """Removes what was only needed to get here; the job's own notes stay until it has ended."""
    for path in (shop.merged, shop.place, shop.measured):
        shutil.rmtree(path, ignore_errors=True)


def _register(shop: Workshop, name: str, result: MergeResult) -> Registered:
    plan, order = shop.plan, shop.plan.order
    fields = manifest_fields(shop, result.record, result.report)
    manifest = Manifest(method=METHOD, lane=Lane.MERGED, reasons=(_WHY,), **fields)
    return shop.context.catalog.register_model(
        shop.model,
        manifest,
        name=name,
        base=plan.source.version.base,
        tags=() if order.tag is None else (order.tag,),
        serving=plan.source.serving,
        # Files of a version never change; a directory of the user's own may.
        share=plan.out is None,
        actor=shop.context.actor,
    )


def _publish_directory(
    shop: Workshop, out: Path, result: MergeResult, report: QualityReport | None
) -> None:
    if not shop.model.exists():
        return  # published by a run that was killed afterwards
    with written(out):
        check_out(out)
        _write_reports(shop.model, result, report)
        put_on_disk(shop.model)
        _move(shop.model, out)


def _kept_at(result: MergeResult, where: Path | None) -> MergeResult:
    return result.model_copy(update={"quality_report": None if where is None else str(where)})


def _write_reports(folder: Path, result: MergeResult, report: QualityReport | None) -> None:
    (folder / REPORT).write_text(result.model_dump_json(indent=2) + "\n")
    if report is not None:
        write_report(report, folder)


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
