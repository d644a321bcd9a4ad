"""A model's directory as a version: what becomes of its files, its report, and of those removed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from adapters.catalog import Catalog
from adapters.compositions import Part, Recipe
from adapters.errors import AlreadyExists, BaseNotFound, NotHotServable, StoreBusy, StoreError
from adapters.frozen import Lane
from adapters.models import Manifest, MergeRecord, Origin, Registered
from adapters.serving.document import SERVING_FILE, Serving
from adapters.store.locks import store_lock


def _model(root: Path, text: str = "weights") -> Path:
    root.mkdir(exist_ok=True)
    (root / "model.safetensors").write_text(text)
    (root / "config.json").write_text("{}")
    (root / "additional_chat_templates").mkdir(exist_ok=True)
    (root / "additional_chat_templates" / "tools.jinja").write_text("x")
    return root


def _manifest(catalog: Catalog) -> Manifest:
    digest = catalog.base("small").digest
    return Manifest(
        format="hugging-face",
        method="merged-model",
        lane=Lane.MERGED,
        reasons=("it is a whole model",),
        rank=None,
        targets=(),
        parameters=3,
        scale="-",
        base_digest=digest,
        base_by_trainer=None,
        trainer=None,
        trainer_version=None,
        source="merge of bot:v1",
        source_sha256="0" * 64,
        merged_from=(Origin(reference="small", digest=digest),),
        merged=MergeRecord(requantize="awq", dtype="bfloat16", base_weights="original", bits=4),
    )


def _add(catalog: Catalog, model: Path, name: str = "big", **more: object) -> Registered:
    wanted = {"tags": (), "serving": Serving(), **more}
    return catalog.register_model(
        model,
        _manifest(catalog),
        name=name,
        base="small",
        **wanted,  # type: ignore[arg-type]
    )


def test_the_files_become_the_versions_without_a_copy(catalog: Catalog, tmp_path: Path) -> None:
    model = _model(tmp_path / "model")
    made = _add(catalog, model, tags=("prod",))
    assert (made.version, made.method, made.lane) == ("v1", "merged-model", Lane.MERGED)
    assert made.tags == ("latest", "prod")
    blob = catalog.layout.blob(made.digest)
    names = {path.name for path in blob.iterdir()}
    assert names == {"model.safetensors", "config.json", "content.json"}
    assert (blob / "model.safetensors").samefile(model / "model.safetensors")
    assert catalog.version_manifest("big").merged == _manifest(catalog).merged
    assert catalog.verify().ok


def test_again_it_is_the_same_version(catalog: Catalog, tmp_path: Path) -> None:
    first = _add(catalog, _model(tmp_path / "one"))
    again = _add(catalog, _model(tmp_path / "two"))
    assert (again.digest, again.version, again.created) == (first.digest, "v1", False)
    assert _add(catalog, _model(tmp_path / "three", "other")).version == "v2"


def test_what_the_adapter_brings_goes_with_it(catalog: Catalog, tmp_path: Path) -> None:
    brought = Serving(system_prompt="Be brief.")
    made = _add(catalog, _model(tmp_path / "model"), serving=brought)
    assert catalog.serving("big") == brought
    assert made.digest != _add(catalog, _model(tmp_path / "plain"), name="plain").digest


def test_refused(catalog: Catalog, tmp_path: Path) -> None:
    model = _model(tmp_path / "model")
    with pytest.raises(AlreadyExists, match="is a base"):
        _add(catalog, model, name="small")
    with pytest.raises(BaseNotFound):
        catalog.register_model(
            model, _manifest(catalog), name="big", base="gone", serving=Serving()
        )
    (model / SERVING_FILE).write_text("{}")
    with pytest.raises(StoreError, match="the store's own name"):
        _add(catalog, model)
    assert catalog.adapters() == []
    assert list(catalog.layout.staging.iterdir()) == []


def test_it_cannot_be_composed(catalog: Catalog, tmp_path: Path) -> None:
    _add(catalog, _model(tmp_path / "model"))
    parts = [Part(reference="big", weight=1.0)]
    with pytest.raises(NotHotServable, match="merged-model"):
        catalog.compose(parts, Recipe(), name="mix")


def test_the_report_goes_when_the_version_does(catalog: Catalog, tmp_path: Path) -> None:
    kept, gone = (_add(catalog, _model(tmp_path / n, n), name=n) for n in ("kept", "gone"))
    for made in (kept, gone):
        folder = catalog.keep_report(made.digest, {"report.json": b"{}", "report.html": b"old"})
        catalog.keep_report(made.digest, {"report.json": b"{}", "report.html": b"<html>"})
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "report.json": b"{}",
            "report.html": b"<html>",
        }
    assert catalog.gc().reports == ()
    catalog.rm("gone")
    would = catalog.gc(dry_run=True)
    assert (would.reports, would.blobs) == ((gone.digest,), (gone.digest,))
    assert catalog.layout.report(gone.digest).is_dir()
    assert catalog.gc().reports == (gone.digest,)
    assert [path.name for path in catalog.layout.reports.iterdir()] == [
        catalog.layout.report(kept.digest).name
    ]


class _Endless(dict[str, bytes]):
    """Files of a report, of which the second never comes; `told` is written to before it."""

    told: int

    def items(self) -> Any:
        yield "report.json", b"{}"
        os.write(self.told, b"1")
        signal.pause()


def test_what_a_killed_writer_left_of_a_report_goes(catalog: Catalog, tmp_path: Path) -> None:
    made = _add(catalog, _model(tmp_path / "model"))
    whole = catalog.keep_report(made.digest, {"report.json": b"{}"})
    hears, told = os.pipe()
    writer = os.fork()
    if writer == 0:
        files = _Endless()
        files.told = told
        catalog.keep_report(made.digest, files)
        os._exit(1)
    assert os.read(hears, 1) == b"1"
    # Nothing is taken from under a writer.
    with pytest.raises(StoreBusy), store_lock(catalog.layout, shared=False, timeout=0.05):
        pass
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    [left] = [path for path in catalog.layout.reports.iterdir() if path != whole]
    assert catalog.gc(dry_run=True).staging == (left.name,)
    catalog.gc()
    assert list(catalog.layout.reports.iterdir()) == [whole]
    os.close(hears)
    os.close(told)


def test_a_damaged_one_is_found_and_made_whole_by_the_same_merge(
    catalog: Catalog, tmp_path: Path
) -> None:
    made = _add(catalog, _model(tmp_path / "model"))
    weights = catalog.layout.blob(made.digest) / "model.safetensors"
    shutil.copyfile(weights, tmp_path / "copy")
    weights.unlink()
    weights.write_text("garbage")
    assert "has changed" in catalog.verify().problems[0]
    _add(catalog, _model(tmp_path / "again"))
    assert catalog.verify().ok
