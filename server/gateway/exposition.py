"""`GET /metrics`: the gateway's own metrics and those of its engines, as one text.

What mirrors a state of the gateway's is asked on the event loop, where that state changes; turning
thousands of samples into text is done in a thread, so that no stream waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from server.engine.vllm_metrics import passed_on
from server.gateway.engine_metrics import EngineMetrics


class GatewayRegistry(CollectorRegistry):
    """Knows which of its collectors may be asked in any thread: counters that lock themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[Collector] = []
        self.mirrors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        counts = isinstance(collector, MetricWrapperBase)
        (self.counted if counts else self.mirrors).append(collector)


class Exposition:
    """Makes the text."""

    def __init__(self, registry: CollectorRegistry, engines: EngineMetrics | None = None):
        """`engines` are asked for theirs first; None: the gateway has none that could say."""
        self._registry = registry
        self._engines = engines

    async def text(self) -> bytes:
        """In Prometheus' text format. Takes no longer than an engine may take to answer."""
        said = {} if self._engines is None else await self._engines.read()
        registry = self._registry
        if not isinstance(registry, GatewayRegistry):
            return generate_latest(_Ready(list(registry.collect()))) + _engines(said)
        mirrored = [metric for one in registry.mirrors for metric in one.collect()]
        counted = list(registry.counted)
        return await asyncio.to_thread(_rendered, mirrored, counted, said)


class _Ready(Collector):
    """Families that are made already."""

    def __init__(self, families: Sequence[Metric]):
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _rendered(
    mirrored: Sequence[Metric], counted: Sequence[Collector], said: Mapping[str, str]
) -> bytes:
    families = [*mirrored, *(metric for one in counted for metric in one.collect())]
    # typeshed has generate_latest take registries only; it asks for `collect` alone.
    return generate_latest(_Ready(families)) + _engines(said)


def _engines(said: Mapping[str, str]) -> bytes:
    return passed_on(said).encode()
