"""Jobs that are killed in and between stages, and end with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapters.jobs.launching
from adapters.jobs.models import JobRecord, JobState
from adapters.jobs.orders import MergeOrder
from quantize.jobs.context import Rejected
from quantize.merging.merge import Watcher
from quantize.pipeline import merge_job
from quantize.pipeline.comparing import Judged, judged
from quantize.pipeline.workshop import Workshop
from tests.quantize.forks import Forked, Forks
from tests.quantize.pipeline.conftest import Works
from tests.quantize.pipeline.test_merge_job import names

KILLS = 10


@pytest.fixture
def forked(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forked]:
    forked = Forked(forks)
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked)
    yield forked
    forked.close()


def ended(works: Works, job: JobRecord) -> JobRecord:
    deadline = time.monotonic() + 60
    while works.catalog.job(job.id).state.living:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return works.catalog.job(job.id)


def test_killed_at_ten_random_moments(works: Works, forked: Forked) -> None:
    """Registering: the digest covers every byte, so the same digest is the same model."""
    began = time.monotonic()
    whole = ended(works, works.catalog.submit_job(MergeOrder(reference="bot", name="whole")))
    duration = time.monotonic() - began
    assert whole.result is not None, whole.error
    chance = random.Random()
    order = MergeOrder(reference="bot", name="killed")
    job = works.catalog.submit_job(order)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, duration))
        forked.processes[job.id].kill()
        if ended(works, job).state is JobState.SUCCEEDED:
            break
        killed = {adapter.name for adapter in works.catalog.adapters()} & {"killed"}
        if killed:
            assert works.catalog.show("killed").digest == whole.result["digest"]
        job = works.catalog.submit_job(order)
    done = ended(works, job)
    assert done.result is not None, done.error
    assert (done.result["digest"], done.result["version"]) == (whole.result["digest"], "v1")
    assert works.catalog.verify().ok
    works.catalog.gc()
    assert list(works.catalog.layout.staging.iterdir()) == []
    assert list(works.catalog.layout.reports.iterdir()) == [
        works.catalog.layout.report(str(done.result["digest"]))
    ]


def test_stages_are_not_done_twice(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off between merging and publishing: the next run only publishes."""
    order = MergeOrder(reference="bot")
    with monkeypatch.context() as patch:
        patch.setattr(merge_job, "publish", _broken_off)
        with pytest.raises(KeyboardInterrupt):
            works.merge("one", order)
    steps: list[str] = []
    made = works.merge("one", order, Watcher(step=steps.append))
    assert steps == ["checking bot and its base", "publishing"]
    assert made.digest == works.merge("two", order).digest


def test_another_base_or_tool_since_starts_anew(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = MergeOrder(reference="bot")
    with monkeypatch.context() as patch:
        patch.setattr(merge_job, "publish", _broken_off)
        with pytest.raises(KeyboardInterrupt):
            works.merge("one", order)
    monkeypatch.setattr("torch.__version__", "99.0")
    steps: list[str] = []
    assert works.merge("one", order, Watcher(step=steps.append)).registered
    assert "merging" in steps


def test_killed_between_registering_and_the_rename(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reports lie beside the model already, and are no part of the version all the same."""
    order = MergeOrder(reference="bot", out=str(works.root / "out"), name="big")
    with monkeypatch.context() as patch:
        patch.setattr("quantize.pipeline.publishing._move", _broken_off)
        with pytest.raises(KeyboardInterrupt):
            works.merge("one", order)
    made = works.merge("one", order)
    assert (made.version, made.path) == ("v1", order.out)
    assert works.catalog.adapter("big").versions.keys() == {1}


def _broken_off(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", [None, "out"])
def test_what_a_gate_refuses_is_kept_aside(
    place: str | None, works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes of it; that gates refuse is measured with real models elsewhere."""

    def refused(shop: Workshop, *rest: object) -> Judged:
        verdict = judged(shop, *rest)  # type: ignore[arg-type]
        return verdict.model_copy(update={"refusal": "rejected: KL 0.3 is above --max-kl 0.2"})

    monkeypatch.setattr(merge_job, "judged", refused)
    out = None if place is None else works.root / place
    order = MergeOrder(reference="bot", out=None if out is None else str(out))
    with pytest.raises(Rejected, match="above --max-kl") as caught:
        works.merge("one", order)
    kept = Path(caught.value.result.path)  # type: ignore[attr-defined]
    job = works.context("one").directory
    assert kept == (job / "rejected" if out is None else works.root / "out.rejected")
    assert {"config.json", "merge_report.json", "tokenizer.json"} <= names(kept)
    assert out is None or not out.exists()
    assert len(works.catalog.adapters()) == 2
    assert names(job / "work") <= {"side", "stages", "report"}
    # Killed before it could say so, and ordered again.
    with pytest.raises(Rejected) as again:
        works.merge("one", order)
    assert again.value.result == caught.value.result
    with pytest.raises(Rejected) as other:
        works.merge("two", order)
    assert Path(other.value.result.path).is_dir()  # type: ignore[attr-defined]
