"""Quality reports as the gateway reads them: the real document, and damaged ones."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.models import AdapterRecord, Origin
from adapters.registry.snapshot import Snapshot
from adapters.store.layout import StoreLayout
from quantize.quality.measuring import Measurement, Speed
from quantize.quality.report import Lineage, QualityReport, ReportedModel
from server.gateway.advice import Candidate
from server.gateway.measured import MeasuredModels
from tests.server.gateway.scripted import PIRATE, base_record, version_record

MODEL = "sha256:" + "7" * 64
OTHER = "sha256:" + "8" * 64


def measurement(*speeds: Speed) -> Measurement:
    return Measurement(
        model="m",
        device="cpu",
        dtype="bfloat16",
        quantization=None,
        startup_seconds=1.0,
        load_seconds=1.0,
        seconds=1.0,
        model_bytes=500,
        kv_cache_bytes=100,
        peak_rss=900,
        speeds=speeds,
        answers=(),
        sets={},
    )


def report(digest: str | None = MODEL) -> dict[str, Any]:
    """A report as a merge job writes it."""
    fast = measurement(Speed(batch=1, tokens_per_second=40.0), Speed(batch=8, tokens_per_second=96))
    document = QualityReport(
        title="pirate:v1, AWQ",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        reference=ReportedModel(name="merged", size=1, measurement=measurement()),
        candidates=(ReportedModel(name="awq", digest=digest, size=1, measurement=fast),),
        sets=(),
        questions=(),
        recipe={"requantize": "awq"},
        lineage=(
            Lineage(role="base", origin=Origin(reference="tiny", digest=OTHER)),
            Lineage(role="adapter", origin=Origin(reference="pirate:v1", digest=PIRATE)),
        ),
    )
    found: dict[str, Any] = json.loads(document.model_dump_json())
    return found


def snapshot(*digests: str) -> Snapshot:
    versions = {
        number: version_record("pirate-awq", number, digest).model_copy(
            update={"method": "merged-model"}
        )
        for number, digest in enumerate(digests, 1)
    }
    plain = AdapterRecord(
        name="pirate",
        default_tag="latest",
        versions={1: version_record("pirate", 1, PIRATE)},
        tags={"latest": 1},
    )
    merged = AdapterRecord(name="pirate-awq", default_tag="latest", versions=versions, tags={})
    return Snapshot({"tiny": base_record()}, {"pirate": plain, "pirate-awq": merged}, 1)


def write(root: Path, digest: str, text: str) -> Path:
    directory = StoreLayout(root).report(digest)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(text)
    return directory / "report.json"


def test_a_report_tells_speed_and_memory_of_what_was_merged(tmp_path: Path) -> None:
    write(tmp_path, MODEL, json.dumps(report()))
    measured = MeasuredModels(StoreLayout(tmp_path), kv_cache_bytes=50)
    assert measured.candidates() == {}
    measured.renew(snapshot(MODEL))
    candidate = Candidate(MODEL, "awq", speeds={1: 40.0, 8: 96.0}, memory_bytes=950)
    assert measured.candidates() == {PIRATE: (candidate,)}


def test_a_report_is_read_once_and_forgotten_with_its_model(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL, json.dumps(report()))
    measured = MeasuredModels(StoreLayout(tmp_path))
    measured.renew(snapshot(MODEL))
    before = path.stat()
    path.write_bytes(b" " * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    measured.renew(snapshot(MODEL, OTHER))
    assert list(measured.candidates()) == [PIRATE]
    path.write_text(json.dumps({**report(), "recipe": {"requantize": "gptq"}}))
    measured.renew(snapshot(MODEL))
    assert measured.candidates()[PIRATE][0].requantize == "gptq"
    measured.renew(snapshot())
    assert measured.candidates() == {}


def test_a_model_without_a_report_may_get_one(tmp_path: Path) -> None:
    """The job registers the model first, and keeps the report after that."""
    measured = MeasuredModels(StoreLayout(tmp_path))
    measured.renew(snapshot(MODEL))
    assert measured.candidates() == {}
    write(tmp_path, MODEL, json.dumps(report()))
    measured.renew(snapshot(MODEL))
    assert list(measured.candidates()) == [PIRATE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"lineage": [], "candidates": []}',
        '{"lineage": [{"role": "base"}]}',
        json.dumps({**report(), "candidates": [{"measurement": None}]}),
        json.dumps({**report(), "recipe": None}),
        json.dumps({**report(), "candidates": []}),
    ],
)
def test_a_damaged_report_says_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, MODEL, text)
    write(tmp_path, OTHER, json.dumps(report(OTHER)))
    measured = MeasuredModels(StoreLayout(tmp_path))
    measured.renew(snapshot(MODEL, OTHER))
    assert [one.digest for one in measured.candidates()[PIRATE]] == [OTHER]
