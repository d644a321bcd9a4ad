"""The quotas of a running server, by its settings."""

from __future__ import annotations

from server.gateway.metrics import GatewayMetrics
from server.gateway.quotas.counters import Counters, MemoryCounters
from server.gateway.quotas.metrics import QuotaMetrics
from server.gateway.quotas.quotas import Quotas
from server.quota_settings import quotas_of
from server.settings import ServeSettings


def made_quotas(settings: ServeSettings, metrics: GatewayMetrics) -> Quotas:
    """Counted in memory, or where the settings say. Nothing is connected to yet."""
    shown = QuotaMetrics(metrics.registry, metrics.tenant_label)
    return Quotas(_counters(settings, shown), shown, quotas_of(settings.tenant_quotas))


def _counters(settings: ServeSettings, shown: QuotaMetrics) -> Counters:
    if settings.quota_storage is None:
        return MemoryCounters()
    # Half a tenth of a second to import, and most servers count for themselves.
    from server.gateway.quotas.failing import FailingCounters
    from server.gateway.quotas.redis_counters import FAULTS, RedisCounters

    shared = RedisCounters(settings.quota_storage)
    failing = FailingCounters(shared, FAULTS, closed=settings.quota_storage_down == "closed")
    shown.storage = "redis"
    shown.storage_up = lambda: failing.up
    return failing
