"""Deployments: which model serves a version, which job makes it, and what becomes of both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import adapters.jobs.launching
from adapters.catalog import Catalog
from adapters.errors import InUse, NotDeployed, NotHotServable, UsageError, VersionNotFound
from adapters.frozen import Lane
from adapters.jobs.models import JobError, JobRecord, JobState
from adapters.jobs.orders import MergeOrder
from adapters.lanes.models import Deployment
from adapters.registry.snapshot import SnapshotWatcher
from tests.adapters.jobs_at_hand import living_job
from tests.adapters.registry.models_at_hand import merged

Register = Callable[..., str]


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are ordered, and no process does them."""
    monkeypatch.setattr(adapters.jobs.launching, "launch", lambda *_, **__: None)


def awq() -> MergeOrder:
    return MergeOrder(reference="anything", requantize="awq")


def lines(catalog: Catalog, name: str = "bot") -> list[tuple[str, str | None, str | None]]:
    return [(f"{c.kind} {c.subject}", c.old, c.new) for c in catalog.lane_history(name)]


def known(catalog: Catalog, ref: str = "bot:v1") -> Deployment | None:
    version = catalog.show(ref)
    return catalog.adapter(version.adapter).deployments.get(version.number)


def succeed(catalog: Catalog, job: JobRecord | None, digest: str) -> None:
    assert job is not None
    catalog.finish_job(job.id, JobState.SUCCEEDED, result={"registered": True, "digest": digest})


def test_what_is_hot_already_leaves_no_trace(catalog: Catalog, register: Register) -> None:
    register(1)
    made = catalog.deploy("bot", lane=Lane.HOT)
    assert (made.deployment.lane, made.job) == (Lane.HOT, None)
    assert (catalog.deployments(), catalog.lane_history("bot")) == ([], [])


def test_out_of_service_and_back(catalog: Catalog, register: Register) -> None:
    register(1)
    assert catalog.undeploy("bot", actor="ann").lane is None
    assert catalog.undeploy("bot").actor == "ann"
    with pytest.raises(NotDeployed, match="adapterctl deploy bot:v1"):
        catalog.pin("bot", True)
    assert catalog.deploy("bot:v1").deployment.lane is Lane.HOT
    assert lines(catalog) == [("undeploy v1", "hot", None), ("deploy v1", None, "hot")]
    assert [d.lane for d in catalog.deployments()] == [Lane.HOT]


def test_pins(catalog: Catalog, register: Register) -> None:
    register(1)
    assert catalog.pin("bot", False).pinned is False
    assert catalog.deployments() == []
    assert catalog.pin("bot", True).pinned
    assert catalog.pin("bot", True).pinned
    assert catalog.undeploy("bot").pinned is False
    assert lines(catalog) == [
        ("pin v1", "hot", "hot, pinned"),
        ("undeploy v1", "hot, pinned", None),
    ]


def test_an_existing_model_of_exactly_this_version_is_taken(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    register(2)
    other = merged(catalog, tmp_path, "bot:v2")
    plain = merged(catalog, tmp_path)
    rounded = merged(catalog, tmp_path, name="bot-awq", requantize="awq", bits=4)
    made = catalog.deploy("bot:v1", lane=Lane.MERGED)
    assert (made.deployment.model, made.deployment.requantize, made.job) == (plain, "none", None)
    made = catalog.deploy("bot:v1", merge=awq())
    assert (made.deployment.model, made.deployment.requantize) == (rounded, "awq")
    assert catalog.deploy("bot:v2", lane=Lane.MERGED).deployment.model == other
    assert catalog.jobs() == []
    # Back and forth: as it was last.
    hot = catalog.deploy("bot:v1", lane=Lane.HOT).deployment
    assert (hot.lane, hot.model) == (Lane.HOT, rounded)
    assert catalog.deploy("bot:v1", lane=Lane.MERGED).deployment.model == rounded
    assert [line for line in lines(catalog) if line[0] == "deploy v1"] == [
        ("deploy v1", "hot", "merged"),
        ("deploy v1", "merged", "merged (awq)"),
        ("deploy v1", "merged (awq)", "hot"),
        ("deploy v1", "hot", "merged (awq)"),
    ]


def test_the_newest_fitting_model_with_its_files_is_taken(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    first = merged(catalog, tmp_path, requantize="awq", group_size=64)
    second = merged(catalog, tmp_path, requantize="awq", group_size=32)
    assert catalog.deploy("bot", merge=awq()).deployment.model == second
    shutil.rmtree(catalog.layout.blob(second))
    assert catalog.deploy("bot", merge=awq()).deployment.model == first
    # What serves already and fits goes on, whatever is newer.
    newer = merged(catalog, tmp_path, requantize="awq", group_size=128)
    assert catalog.deploy("bot", merge=awq()).deployment.model == first
    assert catalog.deploy("bot", model="bot-merged").deployment.model == newer


def test_a_model_may_be_named(catalog: Catalog, register: Register, tmp_path: Path) -> None:
    register(1)
    register(2)
    digest = merged(catalog, tmp_path, requantize="gptq")
    made = catalog.deploy("bot:v1", model="bot-merged:v1").deployment
    assert (made.model, made.requantize, made.lane) == (digest, "gptq", Lane.MERGED)
    with pytest.raises(UsageError, match="was made of bot:v1, not of bot:v2"):
        catalog.deploy("bot:v2", model="bot-merged")
    with pytest.raises(UsageError, match="is no merged model"):
        catalog.deploy("bot:v2", model="bot:v1")


def test_a_merged_model_is_its_own(catalog: Catalog, register: Register, tmp_path: Path) -> None:
    register(1)
    digest = merged(catalog, tmp_path, requantize="awq")
    made = catalog.deploy("bot-merged").deployment
    assert (made.lane, made.model, made.requantize) == (Lane.MERGED, digest, "awq")
    with pytest.raises(NotHotServable):
        catalog.deploy("bot-merged", lane=Lane.HOT)
    # Several versions may be served by it; each says so for itself.
    catalog.deploy("bot", model="bot-merged")
    assert [d.adapter for d in catalog.deployments()] == ["bot", "bot-merged"]


def test_a_job_makes_what_is_missing_and_attaches_it(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    watcher = SnapshotWatcher(catalog.layout.root)
    watcher.start()
    made = catalog.deploy("bot", merge=awq(), actor="ann")
    assert made.job is not None
    assert (made.job.order.reference, made.job.actor) == ("bot:v1", "ann")
    pending = made.deployment
    assert (pending.lane, pending.model, pending.requantize, pending.job) == (
        Lane.MERGED,
        None,
        "awq",
        made.job.id,
    )
    assert watcher.refresh().adapters["bot"].deployments[1] == pending
    digest = merged(catalog, tmp_path, requantize="awq")
    assert known(catalog) == pending
    succeed(catalog, made.job, digest)
    done = watcher.refresh().adapters["bot"].deployments[1]
    watcher.stop()
    assert (done.model, done.job, done.problem) == (digest, made.job.id, None)
    assert lines(catalog) == [
        ("deploy v1", "hot", "merged (awq), no model yet"),
        ("deploy v1", "merged (awq), no model yet", "merged (awq)"),
    ]
    assert catalog.lane_history("bot")[-1].actor == f"job {made.job.id}"
    assert catalog.deploy("bot", merge=awq()).job is None


def test_a_job_that_runs_is_joined_whoever_ordered_it(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    """An `adapterctl merge` with the same options makes the same model."""
    register(1)
    with living_job(catalog, MergeOrder(reference="bot:v1", requantize="awq")) as running:
        for _ in range(2):
            made = catalog.deploy("bot", merge=awq())
            assert made.job is not None and made.job.id == running.id
        succeed(catalog, running, digest := merged(catalog, tmp_path, requantize="awq"))
    assert [job.id for job in catalog.jobs()] == [running.id]
    deployment = known(catalog)
    assert deployment is not None and deployment.model == digest


def test_the_model_is_there_before_the_deployment_hears_of_its_job(
    catalog: Catalog, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends between being ordered and being noted."""
    register(1)
    digest = ""

    def at_once(layout: object, job_id: str, lock: int, **_: object) -> None:
        nonlocal digest
        digest = merged(catalog, tmp_path, requantize="w8a8")
        succeed(catalog, catalog.job(job_id), digest)

    monkeypatch.setattr(adapters.jobs.launching, "launch", at_once)
    # Its record says awq as little as the user's own calibration texts: the job alone tells.
    made = catalog.deploy("bot", merge=awq())
    assert (made.deployment.model, made.job) == (digest, None)
    assert catalog.deploy("bot", merge=awq()).deployment.model == digest
    assert len(catalog.jobs()) == 1


def test_a_job_that_fails_before_the_deployment_hears_of_it(
    catalog: Catalog, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(1)

    def at_once(layout: object, job_id: str, lock: int, **_: object) -> None:
        error = JobError(code="x", message="no disk")
        catalog.finish_job(job_id, JobState.FAILED, error=error)

    monkeypatch.setattr(adapters.jobs.launching, "launch", at_once)
    made = catalog.deploy("bot", merge=awq())
    assert made.job is not None and made.job.state is JobState.FAILED
    assert (made.deployment.job, made.deployment.problem) == (made.job.id, "failed: no disk")


@pytest.mark.parametrize("state", [JobState.REJECTED, JobState.FAILED, JobState.CANCELLED])
def test_a_job_without_a_result_says_why(
    catalog: Catalog, register: Register, no_process: None, state: JobState
) -> None:
    register(1)
    made = catalog.deploy("bot", merge=awq())
    assert made.job is not None
    error = None
    if state is not JobState.CANCELLED:
        error = JobError(code="rejected", message="the KL is 0.9: more than 0.1")
    result = {"registered": False, "digest": catalog.show("bot").digest}
    catalog.finish_job(made.job.id, state, result=result, error=error)
    deployment = known(catalog)
    assert deployment is not None and deployment.model is None
    words = str(state) if error is None else f"{state}: {error.message}"
    assert deployment.problem == words
    assert lines(catalog)[-1][2] == "merged (awq), no model"
    assert words in catalog.lane_history("bot")[-1].reason
    # Again, without naming the options: the same is tried once more.
    again = catalog.deploy("bot", lane=Lane.MERGED)
    assert again.job is not None and again.job.order == made.job.order
    assert again.job.state.living or again.job.state is JobState.INTERRUPTED
    assert (again.deployment.problem, again.deployment.job) == (None, again.job.id)
    assert (again.job.id == made.job.id) == (state is not JobState.REJECTED)


def test_a_job_that_is_resumed_by_hand_attaches(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    made = catalog.deploy("bot", lane=Lane.MERGED)
    assert made.job is not None
    catalog.finish_job(made.job.id, JobState.FAILED, error=JobError(code="x", message="no disk"))
    catalog.resume_job(made.job.id)
    deployment = known(catalog)
    assert deployment is not None and deployment.problem is None
    succeed(catalog, made.job, digest := merged(catalog, tmp_path))
    deployment = known(catalog)
    assert deployment is not None and deployment.model == digest


def test_another_model_is_made_while_the_first_serves(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    plain = merged(catalog, tmp_path)
    catalog.deploy("bot", lane=Lane.MERGED)
    made = catalog.deploy("bot", merge=awq())
    assert made.job is not None
    assert (made.deployment.model, made.deployment.requantize) == (plain, "none")
    succeed(catalog, made.job, digest := merged(catalog, tmp_path, requantize="awq"))
    deployment = known(catalog)
    assert deployment is not None
    assert (deployment.model, deployment.requantize) == (digest, "awq")
    # From the hot lane nobody wants the old one back meanwhile.
    catalog.deploy("bot", lane=Lane.HOT)
    made = catalog.deploy("bot", merge=MergeOrder(reference="-", requantize="gptq"))
    assert (made.deployment.model, made.deployment.lane) == (None, Lane.MERGED)


def test_an_order_that_was_given_up_attaches_nothing(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    first = catalog.deploy("bot", merge=awq())
    second = catalog.deploy("bot", merge=MergeOrder(reference="-", requantize="gptq"))
    assert second.job is not None
    succeed(catalog, first.job, merged(catalog, tmp_path, requantize="awq"))
    assert known(catalog) == second.deployment
    # Out of service it stays out; the model is there when it comes back.
    catalog.undeploy("bot")
    succeed(catalog, second.job, digest := merged(catalog, tmp_path, requantize="gptq"))
    deployment = known(catalog)
    assert deployment is not None and (deployment.lane, deployment.model) == (None, digest)
    assert catalog.deploy("bot", lane=Lane.MERGED).deployment.model == digest


def test_only_the_model_without_moving_traffic(
    catalog: Catalog, register: Register, tmp_path: Path, no_process: None
) -> None:
    register(1)
    register(2)
    catalog.tag("bot:prod", "v1")
    made = catalog.deploy("bot:v1", switch=False)
    assert made.job is not None and made.deployment.lane is Lane.HOT
    route = catalog.route("bot:prod", splits=["@merged=10%"])
    succeed(catalog, made.job, digest := merged(catalog, tmp_path))
    deployment = known(catalog)
    assert deployment is not None and (deployment.lane, deployment.model) == (Lane.HOT, digest)
    assert catalog.routes() == [route]
    assert [line[0] for line in lines(catalog)] == ["route prod"]
    with pytest.raises(UsageError):
        catalog.deploy("bot", lane=Lane.HOT, switch=False)


def test_a_version_in_the_merged_lane_is_not_removed_by_mistake(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    register(1)
    register(2)
    merged(catalog, tmp_path)
    catalog.deploy("bot:v1", lane=Lane.MERGED)
    for ref in ("bot:v1", "bot"):
        with pytest.raises(InUse, match="v1 is deployed merged"):
            catalog.rm(ref)
    with pytest.raises(InUse, match="bot:v1 is served by it"):
        catalog.rm("bot-merged")
    catalog.rm("bot:v1", force=True)
    assert catalog.deployments() == []
    assert lines(catalog)[-1] == ("undeploy v1", "merged", None)
    with pytest.raises(VersionNotFound):
        catalog.deploy("bot:v1")
    catalog.rm("bot-merged")
    catalog.gc()
    assert catalog.verify().ok


def test_a_model_that_goes_by_force_takes_the_deployment_with_it(
    catalog: Catalog, register: Register, tmp_path: Path
) -> None:
    register(1)
    digest = merged(catalog, tmp_path)
    catalog.deploy("bot", lane=Lane.MERGED)
    # The same content under another name: it is still there.
    merged(catalog, tmp_path, name="twin")
    catalog.rm("twin")
    catalog.rm("bot-merged", force=True)
    assert catalog.deployments() == []
    assert catalog.lane_history("bot")[-1].reason == "its model bot-merged:v1 was removed"
    # One that is only kept for later is not held.
    assert merged(catalog, tmp_path) == digest
    catalog.deploy("bot", lane=Lane.MERGED)
    catalog.deploy("bot", lane=Lane.HOT)
    catalog.rm("bot-merged")
    deployment = known(catalog)
    assert deployment is not None and (deployment.lane, deployment.model) == (Lane.HOT, None)


def test_pinned_versions_are_not_removed_by_mistake(catalog: Catalog, register: Register) -> None:
    register(1)
    catalog.pin("bot", True)
    with pytest.raises(InUse, match="hot, pinned"):
        catalog.rm("bot")
    catalog.undeploy("bot")
    assert catalog.rm("bot") == ["bot:v1", "bot"]
    assert [line[0] for line in lines(catalog)] == ["pin v1", "undeploy v1"]
