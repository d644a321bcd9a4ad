"""The server's parts, put together: engines, lanes, metrics, who looks on, the application.

Who hears of ended requests is said in `assemble`; what runs beside requests in `Parts.follow`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import ProcessCollector

from adapters.bases.engine_limits import on_cpu
from adapters.catalog import Catalog
from adapters.models import BaseDescriptor, BaseRecord, VersionRecord
from adapters.registry.snapshot import Snapshot, SnapshotWatcher
from adapters.serving.stored import ServingDocuments
from adapters.store.content import blob_problem
from adapters.store.layout import StoreLayout
from server.engine.capacity import Capacity, hot_versions
from server.engine.command import EngineCommand, engine_command
from server.engine.engines import Engine, ExternalEngine
from server.engine.memory import GIB, BasePlan, memory_limit
from server.engine.pool import EnginePool
from server.engine.process import Spawner
from server.engine.standby import STANDBY_BYTES, StandbySpawner
from server.engine.stored import merged_pool
from server.engine.supervisor import SupervisedEngine
from server.engine.transport import EngineAddress
from server.gateway.admin_lanes import LaneOperations
from server.gateway.admission.metrics import AdmissionCollector
from server.gateway.admission.serving import serving_doors
from server.gateway.background import Background
from server.gateway.callers import Callers
from server.gateway.compositions import Compositions
from server.gateway.copying import Copying
from server.gateway.engine_metrics import EngineMetrics, engine_addresses, engine_processes
from server.gateway.exposition import Exposition, GatewayRegistry
from server.gateway.guard import Guard
from server.gateway.lanes import Lanes
from server.gateway.measured import MeasuredModels
from server.gateway.metrics import GatewayMetrics, StateCollector
from server.gateway.observing import Observation
from server.gateway.picker_metrics import PickerMetrics
from server.gateway.placing import Placing
from server.gateway.pool_metrics import PoolCollector
from server.gateway.quotas.making import made_quotas
from server.gateway.reconciling import Reconciler
from server.gateway.residents import ResidencyCollector
from server.gateway.running import RunningLanes, free_bytes, merged_states
from server.gateway.settle import Answering
from server.gateway.state import GatewayState
from server.gateway.top import Sight, hot_pins
from server.gateway.tracing import tracing_of
from server.gateway.watching import Watching
from server.settings import ServeSettings


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
    standby: StandbySpawner
    reconciler: Reconciler
    sight: Sight
    watching: Watching
    state: GatewayState
    # What the admin API asks of the running server.
    operations: LaneOperations
    guard: Guard
    background: Background

    async def follow(self) -> None:
        """What goes on beside requests once the engine is there; until cancelled."""
        self.sight.start()
        self.background.start()
        try:
            async with self.watching.running():
                await self.reconciler.run()
        finally:
            await self.background.close()
            await self.sight.close()

    async def stop(self) -> None:
        """End every engine; requests have ended before."""
        await asyncio.gather(self.pool.close(), self.engine.stop(), self.standby.close())
        await self.guard.close()
        if self.state.tracing is not None:
            await asyncio.to_thread(self.state.tracing.close)
        await self.state.quotas.close()


def assemble(serving: Serving) -> Parts:
    """Make every part; nothing is started."""
    settings, base, watcher = serving.settings, serving.base, serving.watcher
    layout = StoreLayout(settings.store)

    def snapshot() -> Snapshot:
        return watcher.current

    standby = StandbySpawner(layout.logs / "standby.log")
    plan = BasePlan(settings, Path(base.path), serving.descriptor)
    engine = _base_engine(serving, plan, standby)
    pool = _pool(serving, plan, engine, standby)
    quantized = serving.descriptor.quantization is not None
    placing = Placing(base, engine, layout, quantized=quantized)
    reconciler = Reconciler(snapshot, placing, pool, engine, base.digest)
    documents = ServingDocuments(layout)
    metrics = GatewayMetrics(
        GatewayRegistry(),
        adapters=settings.metric_adapters,
        tenants=settings.metric_tenants,
        versions=settings.metric_versions,
    )
    in_flight: Counter[Answering] = Counter()
    sight = Sight(
        base,
        engine,
        snapshot,
        MeasuredModels(layout, settings.merged_kv_cache_gib * GIB),
        merged=lambda: merged_states(pool),
        in_flight=lambda: in_flight,
        free_bytes=lambda: free_bytes(pool),
    )

    def taken_back(adapter: str) -> None:
        watching.quarantined(adapter)

    guard = Guard(
        snapshot,
        serving.catalog.quarantine,
        watcher.refresh,
        placing.kept_back,
        metrics,
        lambda digest: blob_problem(layout.blob(digest), digest),
        taken_back=taken_back,
    )

    def tell(copied: Observation) -> None:
        sight.traffic.observe(copied)
        guard.observe(copied)

    doors = serving_doors(
        settings, base, engine, snapshot, hot_pins, sight.cache, sight.prefetcher.prefetch
    )
    lanes = Lanes(engine, pool, wait=settings.merged_wait, doors=doors)
    watching = Watching(
        settings,
        snapshot,
        serving.catalog.roll_back_route,
        Copying(placing, lanes, documents),
        metrics,
        tell=tell,
    )
    engine_metrics = EngineMetrics(lambda: engine_addresses(engine, pool))
    background = Background(
        settings.store,
        serving.catalog,
        snapshot,
        metrics.label,
        lambda: engine_processes(engine, pool),
    )
    picker = PickerMetrics(engine, snapshot, doors, engine_metrics, sight.cache)
    collectors = (
        StateCollector(engine, base.name, snapshot),
        PoolCollector(pool, models=settings.metric_adapters),
        ResidencyCollector(sight.cache, base.name, snapshot, metrics.label),
        AdmissionCollector(doors, metrics, base.name, snapshot),
        engine_metrics,
        background,
        picker,
    )
    ProcessCollector(registry=metrics.registry)
    for collector in collectors:
        metrics.registry.register(collector)
    state = GatewayState(
        settings=settings,
        base=base,
        engine=engine,
        snapshot=snapshot,
        compositions=Compositions(
            serving.catalog,
            snapshot,
            watcher.refresh,
            limit=settings.max_compositions,
            timeout=settings.first_token_timeout,
        ),
        metrics=metrics,
        documents=documents,
        placing=placing,
        lanes=lanes,
        keep_up=reconciler.keep_up,
        callers=Callers(
            snapshot,
            weights=settings.tenant_weights,
            adapters=settings.tenant_adapters,
            tenant_header=settings.tenant_header,
            require=settings.require_key,
            public=not settings.loopback_only,
        ),
        quotas=made_quotas(settings, metrics),
        withdrawn=watching.withdrawn,
        tracing=tracing_of(settings),
        in_flight=in_flight,
        observers=[guard.observe, sight.traffic.observe, watching.observe],
        exposition=Exposition(metrics.registry, engine_metrics),
        picker=picker,
    )
    return Parts(
        engine=engine,
        pool=pool,
        standby=standby,
        reconciler=reconciler,
        sight=sight,
        watching=watching,
        state=state,
        operations=RunningLanes(state, pool, sight, watching.status),
        guard=guard,
        background=background,
    )


def _base_engine(serving: Serving, plan: BasePlan, spawner: Spawner) -> Engine:
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
            memory=plan.plan(capacity, _hot(serving)),
            quantization=serving.descriptor.quantization,
            engine_id=engine_id,
            socket=socket,
            log=log,
        )

    return SupervisedEngine(
        settings, base.name, lambda: plan.capacity(_hot(serving)), command, spawner
    )


def _hot(serving: Serving) -> list[VersionRecord]:
    return hot_versions(serving.watcher.current.adapters.values(), serving.base.digest)


def _pool(serving: Serving, plan: BasePlan, engine: Engine, spawner: Spawner) -> EnginePool:
    settings = serving.settings
    standby = STANDBY_BYTES if settings.engine_start == "standby" and on_cpu() else 0

    def base_bytes() -> int:
        if settings.engine_url is not None:
            return standby  # Somebody else's: what it takes is not free, and so not in the limit.
        return plan.plan(engine.capacity, _hot(serving)).total + standby

    limit = memory_limit(settings)
    return merged_pool(settings, serving.runtime, limit=limit, base=base_bytes, spawner=spawner)
