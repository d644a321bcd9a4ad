"""Metrics of the queues: from their state at every scrape, and how long requests waited."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.gateway.admission.doors import BASE, Doors
from server.gateway.admission.wiring import FULL, TENANT_FULL, TIMEOUT, QueueState

_MERGED = "merged"
_WAITS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_EVERY_TENANT = 10_000


class AdmissionCollector(Collector):
    """All merged engines count together: `lane` is base or merged."""

    def __init__(
        self, doors: Doors, tenant_label: Callable[[str], str], registry: CollectorRegistry
    ):
        """`tenant_label` bounds how many tenants get labels of their own."""
        self._doors = doors
        self._tenant_label = tenant_label
        waits = Histogram(
            "adapterctl_queue_wait_seconds",
            "What a request waited for its turn before it was admitted.",
            ["lane"],
            buckets=_WAITS,
            registry=registry,
        )
        doors.waited = lambda engine, seconds: waits.labels(_lane(engine)).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Nothing of a lane that never had a request."""
        lanes: defaultdict[str, list[QueueState]] = defaultdict(list)
        for engine, state in self._doors.states(tenants=_EVERY_TENANT).items():
            lanes[_lane(engine)].append(state)
        yield from _queues(lanes)
        yield from self._tenants([state for states in lanes.values() for state in states])

    def _tenants(self, states: list[QueueState]) -> Iterator[Metric]:
        queued: Counter[str] = Counter()
        service: defaultdict[str, float] = defaultdict(float)
        for state in states:
            for one in state.tenants:
                label = self._tenant_label(one.tenant)
                queued[label] += one.queued
                service[label] += one.service
        waiting = GaugeMetricFamily(
            "adapterctl_tenant_queue_requests", "Requests that wait.", labels=["tenant"]
        )
        got = CounterMetricFamily(
            "adapterctl_tenant_service_tokens",
            "What fairness counts: tokens read, and twice those written.",
            labels=["tenant"],
        )
        for label in service:
            waiting.add_metric([label], queued[label])
            got.add_metric([label], service[label])
        yield waiting
        yield got


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
