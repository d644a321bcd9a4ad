"""Jobs, the quality of merges and the room there is, as metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from adapters.errors import StoreBusy
from adapters.frozen import Lane
from adapters.jobs.models import JobRecord, JobState
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.models import AdapterRecord, Manifest, MergeRecord, TextQuality
from adapters.registry.snapshot import Snapshot
from server.gateway.background import Background
from tests.server.gateway.scripted import PIRATE, base_record, version_record

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUALITY = TextQuality(
    texts="general",
    perplexity=11.5,
    reference_perplexity=11.0,
    kl=0.02,
    kl_p99=None,
    agreement=0.97,
)


EVALUATE = EvaluateOrder(reference="pirate:v1", against="tiny")


def job(number: int, state: JobState, seconds: float | None = None, **values: Any) -> JobRecord:
    fields: dict[str, Any] = {
        "id": f"job{number}",
        "kind": "merge",
        "order": MergeOrder(reference="pirate:v1"),
        "state": state,
        "step": "merge",
        "done": 0,
        "total": 0,
        "actor": "local",
        "created_at": BEGAN,
        "started_at": BEGAN,
        "ended_at": None if seconds is None else BEGAN + timedelta(seconds=seconds),
        "starts": 1,
        "result": None,
        "error": None,
        "log": "",
    }
    return JobRecord(**fields | values)


def manifest(quality: tuple[TextQuality, ...]) -> Manifest:
    return Manifest(
        format="hugging-face",
        method="merged-model",
        lane=Lane.MERGED,
        reasons=(),
        rank=None,
        targets=(),
        parameters=1,
        scale="-",
        base_digest="sha256:" + "b" * 64,
        base_by_trainer=None,
        trainer=None,
        trainer_version=None,
        source="merge",
        source_sha256="0" * 64,
        merged=MergeRecord(
            requantize="none", dtype="bfloat16", base_weights="original", quality=quality
        ),
    )


class Store:
    """The part of a catalog that is read here."""

    def __init__(self, jobs: Sequence[JobRecord] = ()):
        self.found = list(jobs)
        self.asked: list[str] = []
        self.busy = False

    def jobs(self) -> list[JobRecord]:
        if self.busy:
            raise StoreBusy("somebody else writes")
        return self.found

    def version_manifest(self, ref: str) -> Manifest:
        self.asked.append(ref)
        return manifest((QUALITY,))


def snapshot() -> Snapshot:
    merged = version_record("pirate-merged", 1, "sha256:" + "9" * 64).model_copy(
        update={"method": "merged-model", "lane": Lane.MERGED}
    )
    plain = version_record("pirate", 1, PIRATE)
    adapters = {
        version.adapter: AdapterRecord(
            name=version.adapter, default_tag="latest", versions={1: version}, tags={"latest": 1}
        )
        for version in (merged, plain)
    }
    return Snapshot({"tiny": base_record()}, adapters, 1)


def values(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def background(store: Store, path: Path) -> tuple[Background, CollectorRegistry]:
    registry = CollectorRegistry()
    made = Background(path, store, snapshot, lambda name: name)
    registry.register(made)
    return made, registry


def test_jobs_by_state_and_what_the_last_took(tmp_path: Path) -> None:
    store = Store(
        [
            job(1, JobState.SUCCEEDED, 60),
            job(2, JobState.SUCCEEDED, 90),
            job(3, JobState.FAILED, 30),
            job(4, JobState.RUNNING, done=3, total=4),
            job(
                5,
                JobState.QUEUED,
                kind="evaluate",
                order=EvaluateOrder(reference="pirate:v1", against="tiny"),
            ),
        ]
    )
    made, registry = background(store, tmp_path)
    assert values(registry, "adapterctl_jobs") == {}
    made.renew(snapshot(), {})
    counts = values(registry, "adapterctl_jobs")
    assert {key: count for key, count in counts.items() if count} == {
        ("merge", "succeeded"): 2,
        ("merge", "failed"): 1,
        ("merge", "running"): 1,
        ("evaluate", "queued"): 1,
    }
    # Those that have none too: a first failure is then a change.
    assert counts["evaluate", "failed"] == 0
    assert values(registry, "adapterctl_job_last_seconds") == {
        ("merge", "failed"): 30,
        ("merge", "succeeded"): 90,
    }
    ended = values(registry, "adapterctl_job_last_end_timestamp_seconds")
    assert ended["merge", "succeeded"] == BEGAN.timestamp() + 90
    assert values(registry, "adapterctl_job_progress_ratio") == {("job4", "merge"): 0.75}
    assert values(registry, "adapterctl_job_running_seconds")["job4", "merge"] > 0


def test_the_quality_of_merges_is_read_once(tmp_path: Path) -> None:
    store = Store()
    made, registry = background(store, tmp_path)
    for _ in range(2):
        made.renew(snapshot(), {})
    assert store.asked == ["pirate-merged:v1"]
    key = "pirate-merged", "v1", "general"
    for name, value in (
        ("perplexity", 11.5),
        ("reference_perplexity", 11.0),
        ("kl_nats", 0.02),
        ("agreement_ratio", 0.97),
    ):
        assert values(registry, f"adapterctl_merge_{name}") == {key: value}


def test_a_busy_registry_leaves_the_room_to_be_seen(tmp_path: Path) -> None:
    store = Store()
    store.busy = True
    made, registry = background(store, tmp_path)
    made.renew(snapshot(), {})
    assert values(registry, "adapterctl_jobs") == {}
    disk = values(registry, "adapterctl_store_disk_bytes")
    assert 0 < disk["free",] <= disk["total",]
    memory = values(registry, "adapterctl_machine_memory_bytes")
    assert 0 < memory["available",] <= memory["total",]


async def test_it_reads_until_it_is_closed(tmp_path: Path) -> None:
    made, registry = background(Store([job(1, JobState.FAILED, 1)]), tmp_path)
    made.start()
    async with asyncio.timeout(5):
        while not values(registry, "adapterctl_jobs"):
            await asyncio.sleep(0.01)
    await made.close()
    assert values(registry, "adapterctl_jobs")["merge", "failed"] == 1
