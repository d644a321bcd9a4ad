"""Metrics of the engines that run merged models, asked of the pool at every scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine.merged import MergedState, MergedStatus
from server.engine.pool import EnginePool

# Still answering, so still up: a draining engine ends what it has begun.
_UP = frozenset({MergedState.READY, MergedState.DRAINING})
_LABELS = ["model", "version"]


class PoolCollector(Collector):
    """At most `models` of them get series of their own, by its digest and the version it serves."""

    def __init__(self, pool: EnginePool, *, models: int):
        self._pool = pool
        self._models = models

    def collect(self) -> Iterator[Metric]:
        yield from self._by_model(self._pool.statuses()[: self._models])
        counts = self._pool.counts
        events = CounterMetricFamily(
            "adapterctl_merged_engine_events", "What became of merged engines.", labels=["event"]
        )
        events.add_metric(["start"], counts.starts)
        events.add_metric(["start_failure"], counts.failures)
        events.add_metric(["eviction"], counts.evictions)
        events.add_metric(["refusal"], counts.refusals)
        events.add_metric(["idle_stop"], counts.idle_stops)
        yield events
        yield from self._memory()

    def _by_model(self, statuses: list[MergedStatus]) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "adapterctl_merged_engine_up", "1 while the engine is ready.", labels=_LABELS
        )
        seconds = GaugeMetricFamily(
            "adapterctl_merged_engine_start_seconds",
            "What its last start took.",
            labels=_LABELS,
        )
        restarts = CounterMetricFamily(
            "adapterctl_merged_engine_restarts",
            "Times it was started again after a failure.",
            labels=_LABELS,
        )
        requests = GaugeMetricFamily(
            "adapterctl_merged_engine_requests",
            "Requests by state: `in_flight`, or `waiting` for its start.",
            labels=[*_LABELS, "state"],
        )
        for status in statuses:
            labels = [status.model, status.name]
            up.add_metric(labels, float(status.state in _UP))
            restarts.add_metric(labels, status.restarts)
            if status.start_seconds is not None:
                seconds.add_metric(labels, status.start_seconds)
            requests.add_metric([*labels, "in_flight"], status.in_flight)
            requests.add_metric([*labels, "waiting"], status.waiting)
        yield from (up, seconds, restarts, requests)

    def _memory(self) -> Iterator[Metric]:
        memory = self._pool.memory()
        found = GaugeMetricFamily(
            "adapterctl_engine_memory_bytes",
            "The limit for all engines, and what running ones are taken to need.",
            labels=["part"],
        )
        found.add_metric(["limit"], memory.limit)
        found.add_metric(["base"], memory.base)
        found.add_metric(["merged"], memory.merged)
        yield found
