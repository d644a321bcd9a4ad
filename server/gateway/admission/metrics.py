"""Metrics of the queues: from their state at every scrape, and how long requests waited."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Counter as CounterMetric
from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.registry.snapshot import Snapshot
from server.gateway.admission.doors import BASE, Doors
from server.gateway.admission.wiring import FULL, TENANT_FULL, TIMEOUT, QueueState
from server.gateway.metrics import NONE, GatewayMetrics

_MERGED = "merged"
_WAITS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EVERY_TENANT = 10_000


class AdmissionCollector(Collector):
    """All merged engines count together: `lane` is base or merged."""

    def __init__(
        self, doors: Doors, metrics: GatewayMetrics, base: str, snapshot: Callable[[], Snapshot]
    ):
        self._doors = doors
        self._metrics = metrics
        self._base = base
        self._snapshot = snapshot
        waits = Histogram(
            "adapterctl_queue_wait_seconds",
            "What a request waited for its turn before it was admitted.",
            ["lane"],
            buckets=_WAITS,
            registry=metrics.registry,
        )
        doors.waited = lambda engine, seconds: waits.labels(_lane(engine)).observe(seconds)
        # Counted on: a sum over those that have no label of their own just now would fall when one
        # of them gets one, and a counter that falls counts as one that began anew.
        self._service = metrics.bounded(
            CounterMetric(
                "adapterctl_tenant_service_tokens",
                "What fairness counts: tokens read, and twice those written.",
                ["tenant"],
                # Told by `collect`, which counts what came since the last time before.
                registry=None,
            )
        )
        # What was counted already, by engine and tenant.
        self._seen: dict[tuple[str, str], float] = {}

    def collect(self) -> Iterator[Metric]:
        """Nothing of a lane that never had a request."""
        states = self._doors.states(tenants=_EVERY_TENANT)
        lanes: defaultdict[str, list[QueueState]] = defaultdict(list)
        for engine, state in states.items():
            lanes[_lane(engine)].append(state)
        yield from _queues(lanes)
        yield self._adapters(states)
        yield self._tenants(states)
        yield from self._service.collect()

    def _adapters(self, states: Mapping[str, QueueState]) -> Metric:
        snapshot = self._snapshot()
        queued: Counter[str] = Counter()
        for engine, state in states.items():
            for adapter, count in state.waiting.items():
                # A merged engine is known by what it serves.
                digest = adapter if engine == BASE else engine
                name = self._base if digest is None else _holder(snapshot, digest)
                queued[self._metrics.label(name)] += count
        waiting = GaugeMetricFamily(
            "adapterctl_adapter_queue_requests", "Requests that wait.", labels=["adapter"]
        )
        for label, count in sorted(queued.items()):
            waiting.add_metric([label], count)
        return waiting

    def _tenants(self, states: Mapping[str, QueueState]) -> Metric:
        queued: Counter[str] = Counter()
        seen = {}
        for engine, state in states.items():
            for one in state.tenants:
                label = self._metrics.tenant_label(one.tenant)
                queued[label] += one.queued
                seen[engine, one.tenant] = one.service
                before = self._seen.get((engine, one.tenant), 0.0)
                # Less than before: forgotten meanwhile, and begun anew.
                more = one.service - before if one.service >= before else one.service
                self._service.labels(label).inc(more)
        self._seen = seen
        waiting = GaugeMetricFamily(
            "adapterctl_tenant_queue_requests", "Requests that wait.", labels=["tenant"]
        )
        for label, count in sorted(queued.items()):
            waiting.add_metric([label], count)
        return waiting


def _holder(snapshot: Snapshot, digest: str) -> str:
    """An adapter that has this content; where several do, nobody knows whose requests wait."""
    return next((adapter.name for adapter, _ in snapshot.holders(digest)), NONE)


def _queues(lanes: dict[str, list[QueueState]]) -> Iterator[Metric]:
    queue = GaugeMetricFamily(
        "adapterctl_queue_requests",
        "Requests that wait for their turn, by what holds them back.",
        labels=["lane", "reason"],
    )
    longest = GaugeMetricFamily(
        "adapterctl_queue_longest_seconds", "What the oldest has waited.", labels=["lane"]
    )
    refused = CounterMetricFamily(
        "adapterctl_queue_refused", "Requests that were refused.", labels=["lane", "reason"]
    )
    places = GaugeMetricFamily(
        "adapterctl_engine_places", "Answers at once: used, limit.", labels=["lane", "state"]
    )
    for lane, states in lanes.items():
        for reason in ("place", "slot", "prompt"):
            queue.add_metric([lane, reason], sum(one.waiting_for[reason] for one in states))
        longest.add_metric([lane], max(one.longest for one in states))
        for reason in (FULL, TENANT_FULL, TIMEOUT):
            count = sum(one.refused.get(reason, 0) for one in states)
            refused.add_metric([lane, reason], count)
        places.add_metric([lane, "used"], sum(one.places for one in states))
        places.add_metric([lane, "limit"], sum(one.limit for one in states))
    yield from (queue, longest, refused, places)


def _lane(engine: str) -> str:
    return BASE if engine == BASE else _MERGED
