"""Merge jobs without a quantizer: what is published where, what is refused before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.errors import (
    AdapterctlError,
    AdapterNotFound,
    AlreadyExists,
    BaseError,
    Conflict,
    DiskFull,
    UsageError,
)
from adapters.frozen import Lane
from adapters.jobs.orders import Calibration, EvaluateOptions, MergeOrder, QuantizeOptions
from quantize.merging.merge import Watcher
from quantize.merging.workspace import REPORT
from tests.adapters.registry.test_disk_faults import NAMESPACE, namespaces_work
from tests.quantize.pipeline.conftest import Works


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_version_of_an_adapter_of_its_own(works: Works, tiny_base: Path) -> None:
    made = works.merge("one", MergeOrder(reference="bot"))
    assert (made.name, made.version, made.registered) == ("bot-merged", "v1", True)
    assert (made.quantization, made.quality_report, made.tags) == (None, None, ("latest",))
    version = works.catalog.show("bot-merged")
    assert (version.method, version.lane, version.digest) == (
        "merged-model",
        Lane.MERGED,
        made.digest,
    )
    assert made.path == str(works.catalog.layout.blob(made.digest))
    assert names(Path(made.path)) == names(tiny_base) | {"content.json"}
    assert names(works.catalog.layout.report(made.digest)) == {REPORT}
    manifest = works.catalog.version_manifest("bot-merged")
    assert [origin.reference for origin in manifest.merged_from] == ["tiny", "bot:v1"]
    record = manifest.merged
    assert record is not None and (record.requantize, record.not_reproducible) == ("none", None)
    assert works.catalog.adapter("bot").tags == {"latest": 1}
    assert works.catalog.verify().ok
    assert list(works.catalog.layout.staging.iterdir()) == []


def test_the_same_again_is_the_same_version(works: Works) -> None:
    first = works.merge("one", MergeOrder(reference="bot"))
    again = works.merge("two", MergeOrder(reference="bot:v1", tag="prod"))
    assert (again.digest, again.version) == (first.digest, "v1")
    assert works.catalog.adapter("bot-merged").tags == {"latest": 1, "prod": 1}
    other = works.merge("three", MergeOrder(reference="bot", dtype="bfloat16"))
    assert (other.version, other.record.dtype) == ("v2", "bfloat16")
    for path in Path(other.path).glob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}


def test_what_the_adapter_brings_goes_into_the_version(works: Works) -> None:
    made = works.merge("one", MergeOrder(reference="brief"))
    assert works.catalog.serving(f"{made.name}").system_prompt == "w4 w5"
    assert works.catalog.verify().ok


def test_a_directory_alone_registers_nothing(works: Works, tiny_base: Path) -> None:
    out = works.root / "out"
    made = works.merge("one", MergeOrder(reference="bot", out=str(out)))
    assert (made.name, made.version, made.registered) == ("bot", "v1", False)
    assert made.digest == works.catalog.show("bot").digest
    assert made.path == str(out)
    assert names(out) == names(tiny_base) | {REPORT}
    assert json.loads((out / REPORT).read_text())["report"]["adapter"]["reference"] == "bot:v1"
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert [adapter.name for adapter in works.catalog.adapters()] == ["bot", "brief"]
    assert not works.catalog.layout.reports.exists()


def test_a_directory_and_a_version_share_no_file(works: Works) -> None:
    out = works.root / "out"
    made = works.merge("one", MergeOrder(reference="bot", out=str(out), name="big"))
    assert (made.name, made.path) == ("big", str(out))
    blob = works.catalog.layout.blob(made.digest)
    assert not (blob / "config.json").samefile(out / "config.json")
    (out / "config.json").write_text("{}")
    assert works.catalog.verify().ok


def test_nothing_is_left_but_the_answer(works: Works) -> None:
    works.merge("one", MergeOrder(reference="bot"))
    left = works.context("one")
    assert names(left.directory) == {"work", "answer.json"}
    assert names(left.work) <= {"side", "stages", "report"}


def test_killed_before_it_could_say_that_it_had_published(works: Works) -> None:
    orders = {
        "one": MergeOrder(reference="bot"),
        "two": MergeOrder(reference="bot", out=str(works.root / "out")),
    }
    for job, order in orders.items():
        done = works.merge(job, order)
        shutil.rmtree(works.context(job).work)
        assert works.merge(job, order) == done


def test_a_result_that_somebody_else_put_there_is_not_taken_for_ours(works: Works) -> None:
    out = works.root / "out"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    order = MergeOrder(reference="bot", out=str(out))
    with pytest.raises(KeyboardInterrupt):
        works.merge("one", order, Watcher(progress=stop))
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="name another with --out"):
        works.merge("one", order)
    assert names(out) == {"notes.txt"}


REFUSED: dict[str, tuple[dict[str, Any], type[AdapterctlError], str]] = {
    "unknown": ({"reference": "nobody"}, AdapterNotFound, "nobody"),
    "base's name": ({"name": "tiny"}, AlreadyExists, "'tiny' is a base"),
    "tag of nothing": ({"out": "OUT", "tag": "prod"}, UsageError, "give --name too"),
    "dtype": (
        {"requantize": "awq", "dtype": "float16"},
        UsageError,
        "leave --dtype out",
    ),
    "group": (
        {"requantize": "awq", "quantize": QuantizeOptions(group_size=128)},
        UsageError,
        r"192 inputs of .* are not divisible by 128: give --group-size 64 or 32",
    ),
    "asymmetric GPTQ": (
        {"requantize": "gptq", "quantize": QuantizeOptions(symmetric=False)},
        UsageError,
        "symmetric only",
    ),
    "calibration": (
        {
            "requantize": "awq",
            "quantize": QuantizeOptions(calibration=Calibration(path="/no/texts.jsonl")),
        },
        UsageError,
        "there is no file /no/texts.jsonl",
    ),
    "eval": (
        {"evaluate": EvaluateOptions(task="/no/held-out.jsonl")},
        UsageError,
        "there is no file /no/held-out.jsonl",
    ),
    "out": ({"out": "/no/such/place"}, UsageError, "there is no directory /no/such"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(case: str, works: Works) -> None:
    given, error, message = REFUSED[case]
    if given.get("out") == "OUT":
        given = {**given, "out": str(works.root / "out")}
    with pytest.raises(error, match=message):
        works.merge("one", MergeOrder(**{"reference": "bot", **given}))
    assert not (works.context("one").work / "merged").exists()
    assert not (works.root / "out").exists()
    assert len(works.catalog.adapters()) == 2


def test_a_merged_model_is_not_merged_again(works: Works) -> None:
    works.merge("one", MergeOrder(reference="bot"))
    with pytest.raises(UsageError, match=r"bot-merged:v1 is a merged model already \(merge of bot"):
        works.merge("two", MergeOrder(reference="bot-merged"))


def test_a_base_that_is_another_model_now(works: Works, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(works.catalog.base("tiny").path, moved)
    works.catalog.base_add("tiny", moved)
    config = moved / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(BaseError, match="its files have changed"):
        works.merge("one", MergeOrder(reference="bot"))


def test_a_base_without_a_tokenizer(works: Works, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(works.catalog.base("tiny").path, bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    works.catalog.base_add("tiny", bare)
    works.merge("one", MergeOrder(reference="bot"))
    with pytest.raises(UsageError, match="has no tokenizer"):
        works.merge("two", MergeOrder(reference="bot", requantize="gptq"))


def test_too_little_room_is_said_with_the_figures(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFull, match=r"the job needs \d+\.\d MB on the disk .* 0\.0 MB are free"):
        works.merge("one", MergeOrder(reference="bot"))
    monkeypatch.undo()
    monkeypatch.setattr("quantize.pipeline.estimates.available_memory", lambda: 1000)
    with pytest.raises(Conflict, match=r"needs about \d\.\d GB of memory, 0\.0 MB are available"):
        works.merge("one", MergeOrder(reference="bot", requantize="gptq"))
    # A merge alone is streamed: it needs no memory worth a check.
    works.merge("one", MergeOrder(reference="bot"))


@pytest.mark.skipif(not namespaces_work(), reason="needs unprivileged mount namespaces")
def test_a_disk_that_is_full_in_the_middle(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    child = [sys.executable, "-m", "tests.quantize.pipeline.full_disk_child"]
    done = subprocess.run(
        [*NAMESPACE, *child, str(tmp_path / "disk"), str(tiny_base)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
