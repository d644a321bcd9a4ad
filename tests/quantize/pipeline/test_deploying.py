"""A deployment's model, made by a real job: killed when the model is there and nobody knows it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import adapters.jobs.launching
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord, JobState
from adapters.jobs.orders import MergeOrder
from adapters.lanes.models import Deployment
from adapters.store.layout import StoreLayout
from tests.quantize.forks import Forked, Forks
from tests.quantize.pipeline.conftest import Works

ROOT = Path(__file__).parents[3]

# A job that is killed between registering its model and telling the deployment.
DOOMED = """
import os, signal
from adapters.catalog import Catalog
Catalog.finish_job = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from quantize.job import main
main()
"""


class Doomed:
    """In place of adapters.jobs.launching.launch."""

    process: subprocess.Popen[bytes]

    def __call__(
        self, layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None
    ) -> None:
        command = [sys.executable, "-c", DOOMED, str(layout.root), job_id, str(lock)]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=(lock,))


def deployment(works: Works) -> Deployment:
    (found,) = works.catalog.deployments()
    return found


def ended(works: Works, job: JobRecord | None) -> JobRecord:
    assert job is not None
    deadline = time.monotonic() + 60
    while (now := works.catalog.job(job.id)).state.living:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return now


def test_killed_between_registering_and_attaching(
    works: Works, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.jobs.launching, "launch", doomed := Doomed())
    made = works.catalog.deploy("bot", lane=Lane.MERGED)
    assert doomed.process.wait() == -signal.SIGKILL
    job = ended(works, made.job)
    assert job.state is JobState.INTERRUPTED
    digest = works.catalog.show("bot-merged").digest
    assert (deployment(works).lane, deployment(works).model) == (Lane.MERGED, None)
    forked = Forked(forks)
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked)
    assert works.catalog.resume_interrupted() == [job.id]
    assert ended(works, job).state is JobState.SUCCEEDED
    assert (deployment(works).model, deployment(works).job) == (digest, job.id)
    assert works.catalog.adapter("bot-merged").versions.keys() == {1}
    lines = [(c.old, c.new) for c in works.catalog.lane_history("bot")]
    assert lines == [("hot", "merged, no model yet"), ("merged, no model yet", "merged")]


def test_deploy_makes_the_model_once_and_takes_it_ever_after(
    works: Works, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model made by `merge` is taken, one that is being made is waited for, by whoever asks."""
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked := Forked(forks))
    plain = works.catalog.submit_job(MergeOrder(reference="bot"))
    first = works.catalog.deploy("bot", lane=Lane.MERGED)
    assert first.job is None or first.job.id == plain.id
    done = ended(works, plain)
    assert done.result is not None, done.error
    assert deployment(works).model == done.result["digest"]
    assert (works.catalog.layout.blob(done.result["digest"]) / "config.json").is_file()
    for _ in range(2):
        again = works.catalog.deploy("bot:v1", lane=Lane.MERGED)
        assert (again.job, again.deployment) == (None, deployment(works))
    assert forked.processes.keys() == {plain.id}
    # The same weights in another dtype are another model.
    wanted = MergeOrder(reference="bot", dtype="bfloat16")
    other = works.catalog.deploy("bot", merge=wanted)
    assert other.job is not None and other.deployment.model == done.result["digest"]
    result = ended(works, other.job).result
    assert result is not None and deployment(works).model == result["digest"]
    assert result["digest"] != done.result["digest"]


def test_a_job_that_fails_says_why_on_the_deployment(
    works: Works, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.jobs.launching, "launch", Forked(forks))
    config = Path(works.catalog.base("tiny").path) / "config.json"
    text = config.read_bytes()
    try:
        config.write_bytes(b"{}")
        failed = ended(works, works.catalog.deploy("bot", lane=Lane.MERGED).job)
    finally:
        config.write_bytes(text)
    assert failed.error is not None and failed.state is JobState.FAILED
    assert deployment(works).problem == f"failed: {failed.error.message}"
    again = works.catalog.deploy("bot", lane=Lane.MERGED)
    assert deployment(works).problem is None
    assert ended(works, again.job).state is JobState.SUCCEEDED
    assert deployment(works).model is not None
