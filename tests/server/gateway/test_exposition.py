"""`/metrics`: the gateway's and its engines', whatever the engines do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.engine.residency import ResidencyCache
from server.gateway.engine_metrics import EngineMetrics
from server.gateway.exposition import Exposition, GatewayRegistry
from server.gateway.picker_metrics import PickerMetrics
from tests.server.engine.test_vllm_metrics import written
from tests.server.gateway.scripted import Gateway, ScriptedEngine, answer

SOON = 0.2


@contextlib.asynccontextmanager
async def engine_telling(socket: Path, text: str, hangs: asyncio.Event) -> AsyncIterator[str]:
    """An engine that tells `text`, unless it hangs."""

    async def metrics(_: web.Request) -> web.Response:
        while hangs.is_set():
            await asyncio.sleep(0.01)
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield f"unix:{socket}"
    finally:
        await runner.cleanup()


def families(text: bytes) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(text.decode()))
    assert len({one.name for one in found}) == len(found)
    return {one.name: one for one in found}


def values(family: Metric) -> Mapping[str, float]:
    return {sample.labels["engine"]: sample.value for sample in family.samples}


@pytest.fixture
def registry() -> GatewayRegistry:
    made = GatewayRegistry()
    Counter("adapterctl_requests", "Requests.", registry=made).inc()
    Gauge("adapterctl_labelled", "Labelled.", ["x"], registry=made).labels("y").set(1)
    return made


async def test_engines_stand_side_by_side(registry: GatewayRegistry, tmp_path: Path) -> None:
    hangs = asyncio.Event()
    async with (
        engine_telling(tmp_path / "a", written({"a": 1}), hangs) as a,
        engine_telling(tmp_path / "b", written({"b": 2}), hangs) as b,
    ):
        engines = EngineMetrics(lambda: {"base": a, "merged-0": b})
        registry.register(engines)
        found = families(await Exposition(registry, engines).text())
    assert values(found["adapterctl_engine_metrics_up"]) == {"base": 1, "merged-0": 1}
    assert values(found["vllm:prompt_tokens"]) == {"base": 1, "merged-0": 2}
    assert found["adapterctl_requests"].samples[0].value == 1


async def test_an_engine_that_hangs_costs_its_own_figures(
    registry: GatewayRegistry, tmp_path: Path
) -> None:
    well, hangs = asyncio.Event(), asyncio.Event()
    hangs.set()
    async with (
        engine_telling(tmp_path / "a", written({"a": 1}), hangs) as a,
        engine_telling(tmp_path / "b", written({"b": 2}), well) as b,
    ):
        addresses = {"base": a, "merged-0": b, "merged-1": f"unix:{tmp_path / 'nobody'}"}
        engines = EngineMetrics(lambda: addresses, timeout=SOON)
        registry.register(engines)
        exposition = Exposition(registry, engines)
        async with asyncio.timeout(5):
            first, second = await asyncio.gather(exposition.text(), exposition.text())
        found = families(first)
        up = {"base": 0, "merged-0": 1, "merged-1": 0}
        assert values(found["adapterctl_engine_metrics_up"]) == up
        assert values(found["vllm:prompt_tokens"]) == {"merged-0": 2}
        assert families(second).keys() == found.keys()


async def test_without_engines_the_gateway_tells_its_own(gateway: Gateway) -> None:
    async with gateway.get("/metrics") as response:
        assert response.status == 200
        found = families(await response.read())
    assert "adapterctl_registry_entries" in found


async def test_what_a_picker_reads(gateway: Gateway, engine: ScriptedEngine) -> None:
    state = gateway.state

    said = written({"tiny": 1}, usage=0.75)
    async with engine_telling(engine.socket.with_name("t"), said, asyncio.Event()) as address:
        engines = EngineMetrics(lambda: {"base": address})
        await engines.read()
    cache = ResidencyCache(state.engine.transport)
    picker = PickerMetrics(state.engine, state.snapshot, state.lanes.doors, engines, cache)
    engine.handler = answer
    async with gateway.post("/v1/completions", json={"model": "pirate", "prompt": "x"}) as ok:
        assert ok.status == 200
    found = families(picker.text())
    assert {name: family.samples[0].value for name, family in found.items()} == {
        # Two wait in the engine, and nothing does in the gateway.
        "vllm:num_requests_waiting": 2,
        "vllm:num_requests_running": 0,
        "vllm:kv_cache_usage_perc": 0.75,
        "vllm:gpu_cache_usage_perc": 0.75,
    }
