"""The gateway under test and its scripted engine, as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from fastapi import APIRouter

from adapters.catalog import Catalog
from adapters.serving.stored import ServingDocuments
from adapters.store.layout import StoreLayout
from server.engine.engines import ExternalEngine
from server.engine.transport import EngineAddress
from server.gateway.admission.metrics import AdmissionCollector
from server.gateway.app import create_app
from server.gateway.callers import Callers
from server.gateway.compositions import Compositions
from server.gateway.exposition import GatewayRegistry
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics, StateCollector
from server.gateway.placing import Placing
from server.gateway.pool_metrics import PoolCollector
from server.gateway.quotas.making import made_quotas
from server.gateway.reconciling import Reconciler
from server.gateway.state import GatewayState
from server.settings import ServeSettings
from tests.server.gateway.scripted import (
    BASE_DIGEST,
    BIG,
    PIRATE,
    PIRATE_2,
    Gateway,
    Registry,
    ScriptedEngine,
    base_record,
    example_snapshot,
    no_lifespan,
    serving,
    store_blob,
)
from tests.server.gateway.scripted_pool import ScriptedPlaces


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[ScriptedEngine]:
    scripted = ScriptedEngine(tmp_path / "engine.sock")
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def gateway(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[Gateway]:
    for digest in (PIRATE, PIRATE_2, BIG):
        store_blob(tmp_path, digest)
    settings = ServeSettings(
        store=tmp_path,
        base="tiny",
        max_body_bytes=100_000,
        first_token_timeout=0.5,
        request_timeout=1.5,
        connect_timeout=1,
        merged_wait=1.0,
        merged_idle=0,
    )
    external = ExternalEngine(
        EngineAddress.parse(f"unix:{engine.socket}"), "tiny", connect_timeout=1, start_timeout=5
    )
    await external.start()
    metrics = GatewayMetrics(GatewayRegistry(), adapters=10, tenants=2)
    registry = Registry(example_snapshot())
    places = ScriptedPlaces(tmp_path)
    pool = places.pool(settings)
    placing = Placing(base_record(), external, StoreLayout(tmp_path), quantized=False)
    reconciler = Reconciler(registry.current, placing, pool, external, BASE_DIGEST)
    state = GatewayState(
        settings=settings,
        base=base_record(),
        engine=external,
        snapshot=registry.current,
        compositions=Compositions(
            Catalog(tmp_path), registry.current, lambda: None, limit=0, timeout=0.5
        ),
        metrics=metrics,
        documents=ServingDocuments(StoreLayout(tmp_path)),
        placing=placing,
        lanes=Lanes(external, pool, wait=settings.merged_wait),
        keep_up=reconciler.keep_up,
        callers=Callers(registry.current, weights={"acme": 3}, tenant_header="x-tenant"),
        quotas=made_quotas(settings, metrics),
    )
    metrics.registry.register(StateCollector(external, "tiny", registry.current))
    metrics.registry.register(PoolCollector(pool, models=10))
    doors = AdmissionCollector(state.lanes.doors, metrics, "tiny", registry.current)
    metrics.registry.register(doors)
    # What is deployed from here on is new.
    reconciler.keep_up()
    app = create_app(state, APIRouter(), no_lifespan)
    async with serving(app) as url, aiohttp.ClientSession() as client:
        yield Gateway(url, state, client, registry, places, pool)
    await pool.close()
    await external.stop()
