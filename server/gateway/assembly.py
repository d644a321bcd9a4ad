"""The server's parts, put together: engines, lanes, metrics, who looks on, the application.

What listens to ended requests is joined in `_join_observers`, what the admin API asks of the
running server in `Parts.lane_operations`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from adapters.catalog import Catalog
from adapters.errors import UsageError
from adapters.models import BaseDescriptor, BaseRecord
from adapters.registry.snapshot import SnapshotWatcher
from adapters.serving.stored import ServingDocuments
from adapters.store.layout import StoreLayout
from server.engine.capacity import Capacity, hot_versions, plan_capacity
from server.engine.command import EngineCommand, engine_command
from server.engine.engines import Engine, ExternalEngine
from server.engine.memory import memory_limit, plan_base
from server.engine.pool import EnginePool
from server.engine.stored import merged_pool
from server.engine.supervisor import SupervisedEngine
from server.engine.transport import EngineAddress
from server.gateway.compositions import Compositions
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics, StateCollector
from server.gateway.placing import Placing
from server.gateway.pool_metrics import PoolCollector
from server.gateway.reconciling import Reconciler
from server.gateway.state import GatewayState
from server.settings import ServeSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served, and where things lie: given, before anything is made."""

    settings: ServeSettings
    base: BaseRecord
    descriptor: BaseDescriptor
    catalog: Catalog
    watcher: SnapshotWatcher
    # A short, private directory for sockets.
    runtime: Path


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that runs; `stop` ends it."""

    engine: Engine
    pool: EnginePool
    reconciler: Reconciler
    state: GatewayState

    async def follow(self) -> None:
        """What goes on in the background while the server runs; until cancelled."""
        await self.reconciler.run()

    async def stop(self) -> None:
        """End every engine; requests have ended before."""
        await asyncio.gather(self.pool.close(), self.engine.stop())


def assemble(serving: Serving) -> Parts:
    """Make every part; nothing is started."""
    settings, base, watcher = serving.settings, serving.base, serving.watcher
    layout = StoreLayout(settings.store)
    engine = _base_engine(serving)
    pool = _pool(serving, engine)
    quantized = serving.descriptor.quantization is not None
    placing = Placing(base, engine, layout, quantized=quantized)
    reconciler = Reconciler(lambda: watcher.current, placing, pool, engine, base.digest)
    metrics = GatewayMetrics(CollectorRegistry(), adapters=settings.metric_adapters)
    metrics.registry.register(StateCollector(engine, base.name, lambda: watcher.current))
    metrics.registry.register(PoolCollector(pool, models=settings.metric_adapters))
    state = GatewayState(
        settings=settings,
        base=base,
        engine=engine,
        snapshot=lambda: watcher.current,
        compositions=Compositions(
            serving.catalog,
            lambda: watcher.current,
            watcher.refresh,
            limit=settings.max_compositions,
            timeout=settings.first_token_timeout,
        ),
        metrics=metrics,
        documents=ServingDocuments(layout),
        placing=placing,
        lanes=Lanes(engine, pool, wait=settings.merged_wait),
        keep_up=reconciler.keep_up,
    )
    return Parts(engine, pool, reconciler, state)


def _base_engine(serving: Serving) -> Engine:
    settings, base = serving.settings, serving.base
    if settings.engine_url is not None:
        return ExternalEngine(
            EngineAddress.parse(settings.engine_url),
            base.name,
            connect_timeout=settings.connect_timeout,
            start_timeout=settings.start_timeout,
        )
    logs = StoreLayout(settings.store).logs
    logs.mkdir(parents=True, exist_ok=True)
    socket, log = serving.runtime / "engine.sock", logs / "engine.log"

    def command(capacity: Capacity, engine_id: str) -> EngineCommand:
        return engine_command(
            settings,
            base,
            capacity,
            quantization=serving.descriptor.quantization,
            engine_id=engine_id,
            socket=socket,
            log=log,
        )

    return SupervisedEngine(settings, base.name, lambda: _capacity(serving), command)


def _capacity(serving: Serving) -> Capacity:
    adapters = serving.watcher.current.adapters.values()
    return plan_capacity(serving.settings, hot_versions(adapters, serving.base.digest))


def _pool(serving: Serving, engine: Engine) -> EnginePool:
    settings, base = serving.settings, serving.base
    known: dict[Capacity, int] = {}

    def base_bytes() -> int:
        if settings.engine_url is not None:
            return 0  # Somebody else's: what it takes is not free, and so not in the limit.
        capacity = engine.capacity or _capacity(serving)
        if capacity not in known:
            versions = hot_versions(serving.watcher.current.adapters.values(), base.digest)
            plan = plan_base(settings, Path(base.path), serving.descriptor, capacity, versions)
            known[capacity] = plan.total
        return known[capacity]

    try:
        limit = memory_limit(settings)
    except UsageError as error:
        # Of a GPU whose size nobody said: no reason not to serve the base and its hot adapters.
        log.warning("no merged engines: %s", error.message)
        limit = 0
    return merged_pool(settings, serving.runtime, limit=limit, base=base_bytes)
