"""What becomes of a deployment, from what the registry, the jobs and the running engines say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from adapters.catalog import Catalog
from adapters.errors import NotFound
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord, JobState
from adapters.lanes.models import Deployment
from adapters.models import VersionRecord
from server.gateway.lane_models import DeploymentShown, DeploymentState, MergedState


@dataclass(frozen=True, slots=True)
class Running:
    """The merged engines that are known, by the digest of their model; None: no server runs."""

    engines: Mapping[str, MergedState] | None

    @classmethod
    def of(cls, found: Iterable[MergedState] | None) -> Running:
        """Of several servers the one that is furthest answers."""
        if found is None:
            return cls(None)
        best: dict[str, MergedState] = {}
        for engine in found:
            known = best.get(engine.digest)
            if known is None or _ORDER.index(engine.state) < _ORDER.index(known.state):
                best[engine.digest] = engine
        return cls(best)


_ORDER = ("ready", "starting", "failed", "stopping", "idle")


def all_shown(catalog: Catalog, running: Running) -> list[DeploymentShown]:
    """Every deployment of the store, by name and version."""
    found = sorted(catalog.deployments(), key=lambda it: (it.adapter, it.number))
    records = {it.name: it for it in catalog.adapters()} if found else {}
    jobs = {job.id: job for job in catalog.jobs()} if any(it.job for it in found) else {}
    return [
        shown(deployment, record.versions[deployment.number], running, _job(jobs, deployment))
        for deployment in found
        # Removed between the two looks.
        if (record := records.get(deployment.adapter)) and deployment.number in record.versions
    ]


def shown_of(catalog: Catalog, reference: str, running: Running) -> DeploymentShown:
    """The deployment of the version that a reference names; raises NotFound where it has none."""
    version = catalog.show(reference)
    deployment = catalog.adapter(version.adapter).deployments.get(version.number)
    if deployment is None:
        label = f"{version.adapter}:{version.label}"
        if version.lane is Lane.HOT:
            raise NotFound(
                f"{label} has no deployment and needs none: it is served hot, as it came; "
                f"`adapterctl deploy {label} --lane merged` would make a merged model of it"
            )
        raise NotFound(f"{label} is not deployed: `adapterctl deploy {label}` does that")
    return of_version(catalog, version, deployment, running)


def of_version(
    catalog: Catalog, version: VersionRecord, deployment: Deployment, running: Running
) -> DeploymentShown:
    """One deployment with its job, if it has one."""
    jobs: dict[str, JobRecord] = {}
    if deployment.job is not None:
        with suppress(NotFound):  # `jobs rm`
            jobs[deployment.job] = catalog.job(deployment.job)
    return shown(deployment, version, running, _job(jobs, deployment))


def shown(
    deployment: Deployment, version: VersionRecord, running: Running, job: JobRecord | None
) -> DeploymentShown:
    """The document; `job` is the deployment's own, None where it has none or it is forgotten."""
    if deployment.quarantined is not None:
        return DeploymentShown(
            deployment=deployment,
            digest=version.digest,
            state="quarantined",
            detail=deployment.quarantined,
        )
    if deployment.lane is not Lane.MERGED:
        state: DeploymentState = "out_of_service" if deployment.lane is None else "served"
        return DeploymentShown(deployment=deployment, digest=version.digest, state=state)
    model = deployment.model or (version.digest if version.method == "merged-model" else None)
    if model is None:
        state, detail = _without_model(deployment, version, job)
        return DeploymentShown(
            deployment=deployment, digest=version.digest, state=state, detail=detail
        )
    engine = None if running.engines is None else running.engines.get(model)
    return DeploymentShown(
        deployment=deployment,
        digest=version.digest,
        state="deployed" if engine is None else engine.state,
        detail="" if engine is None else engine.detail,
        retry_after=None if engine is None else engine.retry_after,
        engine=engine,
    )


def _without_model(
    deployment: Deployment, version: VersionRecord, job: JobRecord | None
) -> tuple[DeploymentState, str]:
    meanwhile = "; the hot lane answers" if version.lane is Lane.HOT else ""
    # A job that has succeeded is about to say which model it made, or why it cannot be taken.
    may = job is not None and (job.state.living or job.state is JobState.SUCCEEDED)
    if job is not None and may and deployment.problem is None:
        return "merging", f"job {job.id} makes the model ({_progress(job)}){meanwhile}"
    why = deployment.problem or (job.state.value if job is not None else "there is no model of it")
    ended = f"job {job.id} " if job is not None else ""
    return "merge_failed", f"{ended}{why}{meanwhile}"


def _progress(job: JobRecord) -> str:
    if job.state is JobState.QUEUED or job.step is None:
        return "it waits for its turn" if job.state is JobState.QUEUED else "it begins"
    return f"{job.step}, {job.done * 100 // job.total} %" if job.total else job.step


def _job(jobs: Mapping[str, JobRecord], deployment: Deployment) -> JobRecord | None:
    return None if deployment.job is None else jobs.get(deployment.job)


def merged_rows(engines: Sequence[MergedState]) -> list[dict[str, object]]:
    """Merged engines as rows of `GET /engines`, beside the base's engine."""
    return [
        {
            "kind": "merged",
            "lane": Lane.MERGED.value,
            "address": "",
            "slots": None,
            "cpu_adapters": None,
            "max_rank": None,
            **engine.model_dump(mode="json"),
        }
        for engine in engines
    ]
