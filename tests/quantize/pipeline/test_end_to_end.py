"""The whole way with real tools on a tiny model: merged, quantized, measured by vLLM, judged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import adapters.jobs.launching
from adapters.jobs.models import JobRecord, JobState
from adapters.jobs.orders import (
    Calibration,
    EvaluateOptions,
    EvaluateOrder,
    MergeOrder,
    QuantizeOptions,
)
from adapters.models import MergeRecord
from quantize.jobs.context import Rejected
from quantize.pipeline.evaluate_job import run_evaluate
from quantize.quality.report import QualityReport
from tests.quantize.forks import Forked, Forks
from tests.quantize.pipeline.conftest import Works
from tests.quantize.pipeline.test_merge_job import names
from tests.quantize.tiny import VOCABULARY
from tests.server.cli.command_line import CommandLine

_TIMEOUT_S = 300


def _texts(path: Path, count: int) -> Path:
    """Chats of known words, the same every time."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            words = " ".join(f"w{3 + (number * 7 + i * i) % (VOCABULARY - 3)}" for i in range(24))
            message = {"role": "user", "content": words}
            file.write(json.dumps({"messages": [message]}) + "\n")
    return path


@pytest.fixture
def forked(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forked]:
    forked = Forked(forks)
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked)
    yield forked
    forked.close()


def until(works: Works, job: JobRecord, reached: Callable[[JobRecord], bool]) -> JobRecord:
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        found = works.catalog.job(job.id)
        if reached(found):
            return found
        assert found.state.living, found.error
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_gptq_killed_while_it_quantizes(works: Works, forked: Forked, tmp_path: Path) -> None:
    order = MergeOrder(
        reference="bot",
        requantize="gptq",
        quantize=QuantizeOptions(
            calibration=Calibration(
                path=str(_texts(tmp_path / "calibration.jsonl", 8)), samples=6, tokens=64
            )
        ),
        evaluate=EvaluateOptions(
            task=str(_texts(tmp_path / "task.jsonl", 4)), tokens=128, max_kl=1.0
        ),
    )
    job = works.catalog.submit_job(order)
    until(works, job, lambda found: (found.step or "").startswith("quantizing"))
    tools = psutil.Process(forked.processes[job.id].pid).children(recursive=True)
    assert tools, "a tool of its own quantizes"
    forked.processes[job.id].kill()
    assert psutil.wait_procs(tools, timeout=30)[1] == [], "no tool outlives its job"
    assert works.catalog.job(job.id).state is JobState.INTERRUPTED
    assert len(works.catalog.adapters()) == 2
    job = works.catalog.submit_job(order)
    done = until(works, job, lambda found: not found.state.living)
    assert (done.state, done.starts) == (JobState.SUCCEEDED, 2), done.error
    assert works.catalog.job_log(job.id).text.count(" merging\n") == 1, "it was merged once"
    assert done.result is not None
    _check_version(works, done.result["digest"])
    record = works.catalog.version_manifest("bot-gptq").merged
    assert record is not None
    _check_record(record)
    shown = CommandLine(("--store", str(works.catalog.layout.root)))("show", "bot-gptq").out
    for part in ("gptq, 4 bits, group 64, symmetric", "on task", "same token", "gptqmodel 7."):
        assert part in shown
    folder = Path(done.result["quality_report"])
    assert names(folder) == {"merge_report.json", "report.json", "report.html"}
    report = QualityReport.model_validate_json((folder / "report.json").read_text())
    _check_report(report)
    # Evaluated against what it was made of, a limit that nothing holds refuses it.
    wanted = EvaluateOrder(
        reference="bot-gptq",
        against="bot:v1",
        evaluate=EvaluateOptions(
            task=order.evaluate and order.evaluate.task, tokens=64, max_kl=1e-9
        ),
        out=str(tmp_path / "evaluated"),
    )
    with pytest.raises(Rejected, match="above --max-kl") as refused:
        run_evaluate(works.context("evaluated"), wanted)
    again = QualityReport.model_validate_json((tmp_path / "evaluated" / "report.json").read_text())
    assert names(works.context("evaluated").directory / "report") == {"report.json", "report.html"}
    assert again.title == "bot-gptq:v1 against bot:v1"
    assert refused.value.result.model_dump()["against"] == "bot:v1"
    ours, theirs = (r.candidates[-1].measurement.sets["task"].against for r in (again, report))
    assert ours is not None and theirs is not None and ours.kl_mean and theirs.kl_mean
    assert ours.kl_mean == pytest.approx(theirs.kl_mean, rel=0.5)


def _check_version(works: Works, digest: str) -> None:
    version = works.catalog.show("bot-gptq")
    assert (version.digest, version.method) == (digest, "merged-model")
    blob = works.catalog.layout.blob(digest)
    config = json.loads((blob / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert (blob / "tokenizer.json").read_bytes() == (
        Path(works.catalog.base("tiny").path) / "tokenizer.json"
    ).read_bytes()
    assert works.catalog.verify().ok


def _check_record(record: MergeRecord) -> None:
    assert (record.bits, record.group_size, record.symmetric, record.samples) == (4, 64, True, 6)
    assert "gptqmodel" in record.tools
    assert {quality.texts for quality in record.quality} == {"general", "task"}


def _check_report(report: QualityReport) -> None:
    sixteen, quantized = report.candidates
    for candidate in report.candidates:
        found = candidate.measurement.sets["task"].against
        assert found is not None and found.kl_mean is not None and found.kl_mean >= 0
    before, after = (c.measurement.sets["task"].against for c in report.candidates)
    assert before is not None and after is not None and before.kl_mean and after.kl_mean
    assert before.kl_mean < after.kl_mean, "four bits lose more than sixteen"
    assert (sixteen.quantization, quantized.quantization) == (None, "gptq")
    assert quantized.size < sixteen.size
    assert quantized.layer_errors and all(0 < e.error < 0.5 for e in quantized.layer_errors)
    assert {stage.name for stage in quantized.stages} == {"merge", "quantize", "measure"}
    assert [gate.gate for gate in report.gates if gate.passed] == ["finite", "max-kl", "max-kl"]
