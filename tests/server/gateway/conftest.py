"""The gateway under test and its scripted engine, as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from adapters.catalog import Catalog
from adapters.serving.stored import ServingDocuments
from adapters.store.layout import StoreLayout
from server.engine.engines import ExternalEngine
from server.engine.transport import EngineAddress
from server.gateway.app import create_app
from server.gateway.compositions import Compositions
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics, StateCollector
from server.gateway.placing import Placing
from server.gateway.state import GatewayState
from server.settings import ServeSettings
from tests.server.gateway.scripted import (
    BIG,
    PIRATE,
    PIRATE_2,
    Gateway,
    ScriptedEngine,
    base_record,
    example_snapshot,
    no_lifespan,
    serving,
    store_blob,
)


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
    )
    external = ExternalEngine(
        EngineAddress.parse(f"unix:{engine.socket}"), "tiny", connect_timeout=1, start_timeout=5
    )
    await external.start()
    metrics = GatewayMetrics(CollectorRegistry(), adapters=10)
    snapshot = example_snapshot()
    state = GatewayState(
        settings=settings,
        base=base_record(),
        engine=external,
        snapshot=lambda: snapshot,
        compositions=Compositions(
            Catalog(tmp_path), lambda: snapshot, lambda: None, limit=0, timeout=0.5
        ),
        metrics=metrics,
        documents=ServingDocuments(StoreLayout(tmp_path)),
        placing=Placing(base_record(), external, StoreLayout(tmp_path), quantized=False),
        lanes=Lanes(external),
    )
    metrics.registry.register(StateCollector(external, "tiny", lambda: snapshot))
    app = create_app(state, APIRouter(), no_lifespan)
    async with serving(app) as url, aiohttp.ClientSession() as client:
        yield Gateway(url, state, client)
    await external.stop()
