"""Prometheus metrics of the gateway, on an injected registry.

`docs/metrics.md` lists every one; a test compares it with this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from adapters.registry.snapshot import Snapshot
from server.engine.engines import Engine, EngineState
from server.gateway.top_labels import OTHER, TopLabels

M = TypeVar("M", bound=MetricWrapperBase)

# Seconds. From a warm GPU's first token to a long prompt on a laptop.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_WAITS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

NONE = "none"
# What an answer counts under: one histogram tells of all three, and none is kept twice.
_ANSWERED = ["adapter", "version", "lane"]


class GatewayMetrics:
    """Every metric, and the bounds on what gets labels of its own."""

    def __init__(
        self, registry: CollectorRegistry, *, adapters: int, tenants: int = 100, versions: int = 8
    ):
        """At most so many `adapters`, `versions` of each, and `tenants` at a time."""
        # A `_created` series beside every counter would double what is stored, for nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._adapters = TopLabels(adapters, self._adapter_gone)
        self._tenants = TopLabels(tenants, self._tenant_gone)
        self._most_versions = versions
        self._versions: dict[str, TopLabels] = {}
        self._of_adapter: dict[tuple[str, str, str], AdapterSeries] = {}
        self._of_tenant: dict[str, TenantSeries] = {}
        self._bounded: list[MetricWrapperBase] = []
        self._of_requests()
        self._of_answers()
        self._of_tenants()

    def _of_requests(self) -> None:
        self.requests = self.bounded(
            Counter(
                "adapterctl_requests",
                "Requests by adapter (or base), version, lane, route and outcome.",
                ["adapter", "version", "lane", "route", "outcome"],
                registry=self.registry,
            )
        )
        self.in_flight = self.bounded(
            Gauge(
                "adapterctl_requests_in_flight",
                "Requests being answered now.",
                ["adapter", "version"],
                registry=self.registry,
            )
        )
        self.prompt_tokens = self._counter("adapterctl_prompt_tokens", "Tokens read.")
        self.completion_tokens = self._counter("adapterctl_completion_tokens", "Tokens written.")

    def _of_answers(self) -> None:
        self.first_token = self._histogram(
            "adapterctl_time_to_first_token_seconds",
            "From a streamed request's arrival to its first event.",
            _FIRST_TOKEN,
        )
        self.between_tokens = self._histogram(
            "adapterctl_inter_token_seconds", "Between the events of a stream.", _BETWEEN_TOKENS
        )
        self.duration = self._histogram(
            "adapterctl_request_seconds",
            "From a request's arrival to the end of its answer.",
            _WHOLE,
        )
        self.wait = self._histogram(
            "adapterctl_wait_seconds",
            "What a request waited for its engine's start and for its turn there.",
            _WAITS,
        )

    def _of_tenants(self) -> None:
        """Without the adapter's label: both together would be a series for every pair."""
        self.tenant_requests = self.bounded(
            Counter(
                "adapterctl_tenant_requests",
                "Requests by tenant and outcome.",
                ["tenant", "outcome"],
                registry=self.registry,
            )
        )
        self.tenant_in_flight = self.bounded(
            Gauge(
                "adapterctl_tenant_requests_in_flight",
                "Requests being answered now, by tenant.",
                ["tenant"],
                registry=self.registry,
            )
        )
        self.tenant_tokens = self.bounded(
            Counter(
                "adapterctl_tenant_tokens",
                "Tokens by tenant, `prompt` or `completion`.",
                ["tenant", "kind"],
                registry=self.registry,
            )
        )
        self.tenant_first_token = self._histogram(
            "adapterctl_tenant_time_to_first_token_seconds",
            "From a streamed request's arrival to its first event, by tenant.",
            _FIRST_TOKEN,
            ["tenant"],
        )
        self.tenant_duration = self._histogram(
            "adapterctl_tenant_request_seconds",
            "From a request's arrival to the end of its answer, by tenant.",
            _WHOLE,
            ["tenant"],
        )
        self.tenant_wait = self._histogram(
            "adapterctl_tenant_wait_seconds",
            "What a request waited for its engine's start and for its turn there, by tenant.",
            _WAITS,
            ["tenant"],
        )

    def _counter(self, name: str, text: str) -> Counter:
        return self.bounded(Counter(name, text, _ANSWERED, registry=self.registry))

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = _ANSWERED
    ) -> Histogram:
        return self.bounded(Histogram(name, text, labels, buckets=buckets, registry=self.registry))

    def bounded(self, metric: M) -> M:
        """`metric`, whose series go when their `adapter` or `tenant` loses its label."""
        self._bounded.append(metric)
        return metric

    def label(self, adapter: str) -> str:
        """The adapter's own label while it has one, `other` else. Not for counting requests."""
        return self._adapters.of(adapter)

    def tenant_label(self, tenant: str) -> str:
        """The tenant's own label while it has one, `other` else."""
        return self._tenants.of(tenant)

    def of_adapter(self, adapter: str, version: str = NONE, lane: str = NONE) -> AdapterSeries:
        """The metrics that a request to it is counted in; asked once for a request."""
        label = self._adapters.use(adapter)
        if version != NONE:
            version = OTHER if label == OTHER else self._version(label, version)
        return self.in_lane(label, version, lane)

    def in_lane(self, label: str, version: str, lane: str) -> AdapterSeries:
        """The same by the labels themselves."""
        key = label, version, lane
        found = self._of_adapter.get(key)
        if found is None:
            found = self._of_adapter[key] = AdapterSeries(self, label, version, lane)
        return found

    def of_tenant(self, tenant: str) -> TenantSeries:
        """The metrics that a request of the tenant is counted in; asked once for a request."""
        label = self._tenants.use(tenant)
        found = self._of_tenant.get(label)
        if found is None:
            found = self._of_tenant[label] = TenantSeries(self, label)
        return found

    def _version(self, label: str, version: str) -> str:
        found = self._versions.get(label)
        if found is None:

            def gone(old: str) -> None:
                self._forget({"adapter": label, "version": old})

            found = self._versions[label] = TopLabels(self._most_versions, gone)
        return found.use(version)

    def _adapter_gone(self, label: str) -> None:
        self._versions.pop(label, None)
        self._forget({"adapter": label})

    def _tenant_gone(self, label: str) -> None:
        self._of_tenant.pop(label, None)
        self._forget({"tenant": label})

    def _forget(self, labels: dict[str, str]) -> None:
        """Remove every series with these labels."""
        for metric in self._bounded:
            # ValueError: it does not have all of these labels.
            with contextlib.suppress(ValueError):
                metric.remove_by_labels(labels)
        if "adapter" in labels:
            adapter, version = labels["adapter"], labels.get("version")
            for key in [
                one for one in self._of_adapter if one[0] == adapter and version in (None, one[1])
            ]:
                del self._of_adapter[key]


class AdapterSeries:
    """The metrics of one adapter's version in one lane, by their labels: looked up once, not at
    every event of a stream.

    Each is made when it is first used, so that what never streams has no histograms of streams.
    """

    def __init__(self, metrics: GatewayMetrics, label: str, version: str = NONE, lane: str = NONE):
        self._metrics = metrics
        self.label = label
        self.version = version
        self.lane = lane
        self._labels = label, version, lane

    def requests(self, route: str, outcome: str) -> Counter:
        return self._metrics.requests.labels(*self._labels, route, outcome)

    @cached_property
    def in_flight(self) -> Gauge:
        return self._metrics.in_flight.labels(self.label, self.version)

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._metrics.prompt_tokens.labels(*self._labels)

    @cached_property
    def completion_tokens(self) -> Counter:
        return self._metrics.completion_tokens.labels(*self._labels)

    @cached_property
    def first_token(self) -> Histogram:
        return self._metrics.first_token.labels(*self._labels)

    @cached_property
    def between_tokens(self) -> Histogram:
        return self._metrics.between_tokens.labels(*self._labels)

    @cached_property
    def duration(self) -> Histogram:
        return self._metrics.duration.labels(*self._labels)

    @cached_property
    def wait(self) -> Histogram:
        return self._metrics.wait.labels(*self._labels)


class TenantSeries:
    """The same of one tenant's label."""

    def __init__(self, metrics: GatewayMetrics, label: str):
        self._metrics = metrics
        self.label = label

    @cached_property
    def in_flight(self) -> Gauge:
        return self._metrics.tenant_in_flight.labels(self.label)

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._metrics.tenant_tokens.labels(self.label, "prompt")

    @cached_property
    def completion_tokens(self) -> Counter:
        return self._metrics.tenant_tokens.labels(self.label, "completion")

    @cached_property
    def first_token(self) -> Histogram:
        return self._metrics.tenant_first_token.labels(self.label)

    @cached_property
    def duration(self) -> Histogram:
        return self._metrics.tenant_duration.labels(self.label)

    @cached_property
    def wait(self) -> Histogram:
        return self._metrics.tenant_wait.labels(self.label)


class StateCollector(Collector):
    """Metrics that mirror a state: asked for at every scrape, never out of date."""

    def __init__(self, engine: Engine, base: str, snapshot: Callable[[], Snapshot]):
        self._engine = engine
        self._base = base
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "adapterctl_engine_up", "1 while the engine is ready to answer.", labels=["base"]
        )
        up.add_metric([self._base], float(self._engine.status().state is EngineState.READY))
        yield up
        restarts = CounterMetricFamily(
            "adapterctl_engine_restarts",
            "Times the engine was started again after a failure.",
            labels=["base"],
        )
        restarts.add_metric([self._base], self._engine.restarts)
        yield restarts
        snapshot = self._snapshot()
        entries = GaugeMetricFamily(
            "adapterctl_registry_entries",
            "What the registry holds, by kind: base, adapter, version, quarantined.",
            labels=["kind"],
        )
        entries.add_metric(["base"], len(snapshot.bases))
        entries.add_metric(["adapter"], len(snapshot.adapters))
        entries.add_metric(
            ["version"], sum(len(one.versions) for one in snapshot.adapters.values())
        )
        deployments = (it for one in snapshot.adapters.values() for it in one.deployments.values())
        kept = sum(deployment.quarantined is not None for deployment in deployments)
        entries.add_metric(["quarantined"], kept)
        yield entries
