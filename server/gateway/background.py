"""Metrics that have to be read from disks and from the machine: jobs, quality, room.

A thread reads them now and then, and whoever looks sees the last reading: a disk that hangs costs
nobody an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.errors import AdapterctlError
from adapters.jobs.models import JobRecord, JobState
from adapters.models import Manifest, TextQuality, VersionRecord
from adapters.registry.snapshot import Snapshot
from server.engine.cgroups import Machine, machine_memory
from server.engine.process import session_members
from server.ongoing import Ongoing

log = logging.getLogger(__name__)

# Seconds between two readings.
INTERVAL = 10.0
KINDS = ("merge", "evaluate")
# The newest merged models whose quality is told, and running jobs whose progress is.
MOST_MODELS = 100
_MOST_RUNNING = 16
MERGED_MODEL = "merged-model"


class Store(Protocol):
    """What is read of the catalog."""

    def jobs(self) -> list[JobRecord]: ...
    def version_manifest(self, ref: str) -> Manifest: ...


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the store's file system, of memory, and what each engine's processes hold."""

    disk_total: int
    disk_free: int
    memory: Machine
    engines: Mapping[str, int]


@dataclass(slots=True)
class Reading:
    """What was found; None: could not be read, or not yet."""

    jobs: list[JobRecord] | None = None
    room: Room | None = None
    # Newest first.
    quality: list[tuple[VersionRecord, tuple[TextQuality, ...]]] = field(default_factory=list)


class Background(Collector):
    """Reads, on a running event loop from `start` to `close`, and tells the last reading."""

    def __init__(
        self,
        store: Path,
        catalog: Store,
        snapshot: Callable[[], Snapshot],
        label: Callable[[str], str],
        processes: Callable[[], Mapping[str, int]] = dict,
    ):
        """`label` bounds adapters (GatewayMetrics.label); `processes`: each engine's first process,
        asked on the event loop."""
        self._store = store
        self._catalog = catalog
        self._snapshot = snapshot
        self._label = label
        self._processes = processes
        self._ongoing = Ongoing(self._keep_reading)
        self._reading = Reading()
        # What a merged model's manifest said, by its digest: that never changes.
        self._measured: dict[str, tuple[TextQuality, ...]] = {}

    def start(self) -> None:
        """Begin to read."""
        self._ongoing.start()

    async def close(self) -> None:
        """End that."""
        await self._ongoing.close()

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.to_thread(self.renew, self._snapshot(), self._processes())
            await asyncio.sleep(INTERVAL)

    def renew(self, snapshot: Snapshot, processes: Mapping[str, int]) -> None:
        """Read everything once; what cannot be read is told to the log and not shown."""
        found = Reading()
        try:
            found.jobs = self._catalog.jobs()
            found.quality = self._qualities(snapshot)
        except (AdapterctlError, OSError) as error:
            log.warning("the registry cannot be read for metrics: %s", error)
        try:
            disk = shutil.disk_usage(self._store)
            engines = {engine: _resident(pid) for engine, pid in processes.items()}
            found.room = Room(disk.total, disk.free, machine_memory(), engines)
        except (OSError, psutil.Error) as error:
            log.warning("the machine cannot be read for metrics: %s", error)
        self._reading = found

    def _qualities(self, snapshot: Snapshot) -> list[tuple[VersionRecord, tuple[TextQuality, ...]]]:
        merged = [
            version
            for adapter in snapshot.adapters.values()
            for version in adapter.versions.values()
            if version.method == MERGED_MODEL
        ]
        merged.sort(key=lambda version: version.registered_at, reverse=True)
        found = []
        for version in merged[:MOST_MODELS]:
            known = self._measured.get(version.digest)
            if known is None:
                manifest = self._catalog.version_manifest(f"{version.adapter}:{version.label}")
                known = () if manifest.merged is None else manifest.merged.quality
                self._measured[version.digest] = known
            found.append((version, known))
        self._measured = {version.digest: known for version, known in found}
        return found

    def collect(self) -> Iterator[Metric]:
        """Of the last reading; nothing before the first."""
        reading = self._reading
        if reading.jobs is not None:
            yield from _jobs(reading.jobs, datetime.now(UTC))
        if reading.room is not None:
            yield from _room(reading.room)
        yield from self._quality(reading)

    def _quality(self, reading: Reading) -> Iterator[Metric]:
        labels = ["adapter", "version", "texts"]
        perplexity = GaugeMetricFamily(
            "adapterctl_merge_perplexity", "Of a merged model, on a set of texts.", labels=labels
        )
        reference = GaugeMetricFamily(
            "adapterctl_merge_reference_perplexity",
            "Of what it was made of: the base with the adapter.",
            labels=labels,
        )
        divergence = GaugeMetricFamily(
            "adapterctl_merge_kl_nats",
            "Mean Kullback-Leibler divergence of the next token from the reference's.",
            labels=labels,
        )
        agreement = GaugeMetricFamily(
            "adapterctl_merge_agreement_ratio",
            "Share of places where both find the same token likeliest.",
            labels=labels,
        )
        for version, sets in reading.quality:
            for one in sets:
                key = [self._label(version.adapter), version.label, one.texts]
                for family, value in (
                    (perplexity, one.perplexity),
                    (reference, one.reference_perplexity),
                    (divergence, one.kl),
                    (agreement, one.agreement),
                ):
                    if value is not None:
                        family.add_metric(key, value)
        yield from (perplexity, reference, divergence, agreement)


def _resident(pid: int) -> int:
    """Bytes that the processes of an engine hold; what they share counts for each."""
    total = 0
    for member in session_members(pid):
        with contextlib.suppress(psutil.Error):
            total += int(psutil.Process(member).memory_info().rss)
    return total


def _jobs(jobs: Iterable[JobRecord], now: datetime) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "adapterctl_jobs", "Jobs that the registry knows.", labels=["kind", "state"]
    )
    seconds = GaugeMetricFamily(
        "adapterctl_job_last_seconds",
        "What the last job took that came to this end.",
        labels=["kind", "state"],
    )
    ended = GaugeMetricFamily(
        "adapterctl_job_last_end_timestamp_seconds",
        "When the last job came to this end, in seconds since 1970.",
        labels=["kind", "state"],
    )
    counts: Counter[tuple[str, str]] = Counter()
    last: dict[tuple[str, str], JobRecord] = {}
    running: list[JobRecord] = []
    for job in jobs:
        key = job.kind, job.state.value
        counts[key] += 1
        if job.state is JobState.RUNNING:
            running.append(job)
        if job.ended_at is not None and not job.state.living:
            before = last.get(key)
            if before is None or before.ended_at is None or before.ended_at <= job.ended_at:
                last[key] = job
    for kind in KINDS:
        for state in JobState:
            # All of them, so that the first failure is a change and not a beginning.
            states.add_metric([kind, state.value], counts[kind, state.value])
    for key, job in sorted(last.items()):
        assert job.ended_at is not None
        ended.add_metric([*key], job.ended_at.timestamp())
        if job.started_at is not None:
            seconds.add_metric([*key], (job.ended_at - job.started_at).total_seconds())
    yield from (states, seconds, ended, *_running(running, now))


def _running(jobs: list[JobRecord], now: datetime) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "adapterctl_job_running_seconds",
        "How long a running job has been at work.",
        labels=["id", "kind"],
    )
    progress = GaugeMetricFamily(
        "adapterctl_job_progress_ratio",
        "How much of its step a running job has done, 0 to 1.",
        labels=["id", "kind"],
    )
    for job in jobs[:_MOST_RUNNING]:
        if job.started_at is not None:
            age.add_metric([job.id, job.kind], (now - job.started_at).total_seconds())
        progress.add_metric([job.id, job.kind], job.done / job.total if job.total else 0.0)
    yield from (age, progress)


def _room(room: Room) -> Iterator[Metric]:
    disk = GaugeMetricFamily(
        "adapterctl_store_disk_bytes", "The file system of the store.", labels=["state"]
    )
    disk.add_metric(["total"], room.disk_total)
    disk.add_metric(["free"], room.disk_free)
    memory = GaugeMetricFamily(
        "adapterctl_machine_memory_bytes",
        "Memory of the machine, or what the container may use of it.",
        labels=["state"],
    )
    memory.add_metric(["total"], room.memory.total)
    memory.add_metric(["available"], room.memory.available)
    resident = GaugeMetricFamily(
        "adapterctl_engine_resident_bytes",
        "Memory that the processes of an engine hold; what they share counts for each.",
        labels=["engine"],
    )
    for engine, size in sorted(room.engines.items()):
        resident.add_metric([engine], size)
    yield from (disk, memory, resident)
