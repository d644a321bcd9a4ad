"""Prometheus metrics of the gateway, on an injected registry.

`docs/metrics.md` lists every one; a test compares it with this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.registry.snapshot import Snapshot
from server.engine.engines import Engine, EngineState

# Seconds. From a warm GPU's first token to a long prompt on a laptop.
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

OTHER = "other"
NONE = "none"


class GatewayMetrics:
    """Every metric, and the bounds on how many adapters and tenants get labels of their own."""

    def __init__(self, registry: CollectorRegistry, *, adapters: int, tenants: int = 100):
        # A `_created` series beside every counter would double what is stored, for nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._adapters = _Labels(adapters)
        self._tenants = _Labels(tenants)
        self._of_adapter: dict[str, AdapterSeries] = {}
        self._of_tenant: dict[str, TenantSeries] = {}
        self.requests = Counter(
            "adapterctl_requests",
            "Requests by adapter (or base), lane, route and outcome: `ok` or an error's code.",
            ["adapter", "lane", "route", "outcome"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "adapterctl_requests_in_flight",
            "Requests being answered now.",
            ["adapter"],
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "adapterctl_prompt_tokens", "Tokens read.", ["adapter"], registry=registry
        )
        self.completion_tokens = Counter(
            "adapterctl_completion_tokens", "Tokens written.", ["adapter"], registry=registry
        )
        self.first_token = Histogram(
            "adapterctl_time_to_first_token_seconds",
            "From a streamed request's arrival to its first event.",
            ["adapter"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "adapterctl_inter_token_seconds",
            "Between the events of a stream.",
            ["adapter"],
            buckets=_BETWEEN_TOKENS,
            registry=registry,
        )
        self.duration = Histogram(
            "adapterctl_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["adapter"],
            buckets=_WHOLE,
            registry=registry,
        )
        self._of_tenants(registry)

    def _of_tenants(self, registry: CollectorRegistry) -> None:
        """Without the adapter's label: both together would be a series for every pair."""
        self.tenant_requests = Counter(
            "adapterctl_tenant_requests",
            "Requests by tenant and outcome.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self.tenant_tokens = Counter(
            "adapterctl_tenant_tokens",
            "Tokens by tenant, `prompt` or `completion`.",
            ["tenant", "kind"],
            registry=registry,
        )
        self.tenant_first_token = Histogram(
            "adapterctl_tenant_time_to_first_token_seconds",
            "From a streamed request's arrival to its first event, by tenant.",
            ["tenant"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )

    def label(self, adapter: str) -> str:
        """The adapter's own label while there are not too many, `other` after that."""
        return self._adapters.of(adapter)

    def tenant_label(self, tenant: str) -> str:
        """The tenant's own label while there are not too many, `other` after that."""
        return self._tenants.of(tenant)

    def of_adapter(self, adapter: str) -> AdapterSeries:
        """The metrics that its requests are counted in."""
        label = self.label(adapter)
        found = self._of_adapter.get(label)
        if found is None:
            found = self._of_adapter[label] = AdapterSeries(self, label)
        return found

    def of_tenant(self, tenant: str) -> TenantSeries:
        """Its own metrics while there are not too many tenants, those of `other` after that."""
        label = self.tenant_label(tenant)
        found = self._of_tenant.get(label)
        if found is None:
            found = self._of_tenant[label] = TenantSeries(self, label)
        return found


class AdapterSeries:
    """The metrics of one adapter's label: looked up once, not at every event of a stream.

    Each is made when it is first used, so that what never streams has no histograms of streams.
    """

    def __init__(self, metrics: GatewayMetrics, label: str):
        self._metrics = metrics
        self.label = label

    @cached_property
    def in_flight(self) -> Gauge:
        return self._metrics.in_flight.labels(self.label)

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._metrics.prompt_tokens.labels(self.label)

    @cached_property
    def completion_tokens(self) -> Counter:
        return self._metrics.completion_tokens.labels(self.label)

    @cached_property
    def first_token(self) -> Histogram:
        return self._metrics.first_token.labels(self.label)

    @cached_property
    def between_tokens(self) -> Histogram:
        return self._metrics.between_tokens.labels(self.label)

    @cached_property
    def duration(self) -> Histogram:
        return self._metrics.duration.labels(self.label)


class TenantSeries:
    """The same of one tenant's label."""

    def __init__(self, metrics: GatewayMetrics, label: str):
        self._metrics = metrics
        self.label = label

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._metrics.tenant_tokens.labels(self.label, "prompt")

    @cached_property
    def completion_tokens(self) -> Counter:
        return self._metrics.tenant_tokens.labels(self.label, "completion")

    @cached_property
    def first_token(self) -> Histogram:
        return self._metrics.tenant_first_token.labels(self.label)


class _Labels:
    """The first `limit` names, and `other` for those after them."""

    def __init__(self, limit: int):
        self._limit = limit
        self._named: set[str] = set()

    def of(self, name: str) -> str:
        if name in self._named:
            return name
        if len(self._named) >= self._limit:
            return OTHER
        self._named.add(name)
        return name


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
