"""Metrics of quotas: refusals as they happen, what is used at every scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

# Of a tenant, a kind of quota, and the part of it that is used.
Usage = tuple[str, str, float]


class QuotaMetrics(Collector):
    """On `registry`; `tenant_label` bounds how many tenants get labels of their own."""

    def __init__(self, registry: CollectorRegistry, tenant_label: Callable[[str], str]):
        self._label = tenant_label
        # Set by what they are about.
        self.storage = "memory"
        self.usages: Callable[[], Iterable[Usage]] = tuple
        self.storage_up: Callable[[], bool] = lambda: True
        self._rejections = Counter(
            "adapterctl_quota_rejections",
            "Requests refused with 429 quota_exceeded, by the quota that was full.",
            ["tenant", "kind"],
            registry=registry,
        )
        registry.register(self)

    def rejected(self, tenant: str, kind: str) -> None:
        """A request was refused: `requests`, `tokens` or `concurrent`."""
        self._rejections.labels(self._label(tenant), kind).inc()

    def collect(self) -> Iterator[Metric]:
        used = GaugeMetricFamily(
            "adapterctl_quota_used_ratio",
            "The part of a quota that is used, of the fullest among a tenant's own and its keys'.",
            labels=["tenant", "kind"],
        )
        fullest: dict[tuple[str, str], float] = {}
        for tenant, kind, ratio in self.usages():
            place = (self._label(tenant), kind)
            fullest[place] = max(ratio, fullest.get(place, 0.0))
        for (tenant, kind), ratio in sorted(fullest.items()):
            used.add_metric([tenant, kind], ratio)
        yield used
        up = GaugeMetricFamily(
            "adapterctl_quota_storage_up",
            "1 while what quotas are counted in answers: `memory` always does, `redis` may not.",
            labels=["storage"],
        )
        up.add_metric([self.storage], float(self.storage_up()))
        yield up
