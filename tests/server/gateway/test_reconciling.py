"""Engines follow the registry: which models are wanted, what is pinned, what is told again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adapters.frozen import Lane
from adapters.lanes.models import Shadow, Split
from adapters.store.layout import engine_name
from server.engine.engines import ExternalEngine
from server.engine.transport import EngineAddress
from server.gateway.reconciling import Reconciler, wanted_of
from tests.server.gateway.lane_cases import (
    MODEL,
    MODEL_AWQ,
    WEIGHTY_MODEL,
    deploy,
    deployment,
    merged,
    route,
    until,
)
from tests.server.gateway.scripted import BASE_DIGEST, PIRATE, PIRATE_2, Gateway


def wanted(gateway: Gateway) -> tuple[set[str], set[str], set[str]]:
    found = wanted_of(gateway.registry.current(), gateway.state.placing, BASE_DIGEST)
    return set(found.models), set(found.pinned), set(found.in_slots)


async def test_wanted_is_what_deployments_and_routes_send_requests_to(gateway: Gateway) -> None:
    assert wanted(gateway) == (set(), set(), set())
    # A model that is only kept for later is not.
    deploy(gateway, deployment("pirate", 1, Lane.HOT, MODEL))
    assert wanted(gateway)[0] == set()
    deploy(gateway, deployment("weighty", 2, Lane.MERGED, WEIGHTY_MODEL, pinned=True))
    assert wanted(gateway) == ({WEIGHTY_MODEL}, {WEIGHTY_MODEL}, set())
    part = route(Split(number=1, lane=Lane.MERGED, share=0.1))
    gateway.registry.change("pirate", routes={"prod": part})
    assert wanted(gateway)[0] == {WEIGHTY_MODEL, MODEL}
    # A shadow without a lane goes where its version is deployed.
    deploy(gateway, deployment("pirate", 2, Lane.MERGED, MODEL_AWQ))
    gateway.registry.change("pirate", routes={"prod": route(shadows=(Shadow(number=2, share=1),))})
    assert wanted(gateway)[0] == {WEIGHTY_MODEL, MODEL_AWQ}
    deploy(gateway, deployment("pirate", 2, None, MODEL_AWQ))
    assert wanted(gateway)[0] == {WEIGHTY_MODEL}


async def test_what_is_newly_deployed_starts_ahead_and_what_was_waits_for_a_request(
    gateway: Gateway,
) -> None:
    place = merged(gateway)
    # A server that begins with this deployment.
    late = Reconciler(
        gateway.registry.current,
        gateway.state.placing,
        gateway.pool,
        gateway.state.engine,
        BASE_DIGEST,
    )
    late.keep_up()
    await asyncio.sleep(0.05)
    assert place.starts == 0
    other = deploy(gateway, deployment("weighty", 2, Lane.MERGED, WEIGHTY_MODEL))
    late.keep_up()
    await until(lambda: gateway.pool.ready(WEIGHTY_MODEL))
    assert other is not None
    assert (place.starts, other.starts) == (0, 1)
    deploy(gateway, deployment("pirate", 1, Lane.MERGED, MODEL, pinned=True))
    late.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))


@dataclass
class PinnedEngine:
    """An engine that takes pins, as the plugin's routes do."""

    socket: Path
    told: list[list[str]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ExternalEngine]:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_put("/adapterctl/pins", self._pins)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        address = EngineAddress.parse(f"unix:{self.socket}")
        engine = ExternalEngine(address, "tiny", connect_timeout=1, start_timeout=5)
        await engine.start()
        yield engine
        await engine.stop()
        await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def _pins(self, request: web.Request) -> web.Response:
        names: list[str] = json.loads(await request.read())["names"]
        self.told.append(sorted(names))
        return web.json_response({"pinned": names, "refused": {}})


class Restarting:
    """An engine in front of the one that runs now."""

    def __init__(self, engine: ExternalEngine):
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


async def test_pins_are_told_once_and_again_to_an_engine_that_was_restarted(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.gateway.reconciling.INTERVAL", 0.01)
    scripted = PinnedEngine(tmp_path / "pins.sock")
    first, second = engine_name(PIRATE), engine_name(PIRATE_2)
    async with scripted.running() as engine, contextlib.AsyncExitStack() as stack:
        running = Restarting(engine)
        reconciler = Reconciler(
            gateway.registry.current,
            gateway.state.placing,
            gateway.pool,
            running,
            BASE_DIGEST,
        )
        task = asyncio.create_task(reconciler.run())
        stack.callback(task.cancel)
        deploy(gateway, deployment("pirate", 1, Lane.HOT, pinned=True))
        await until(lambda: scripted.told == [[first]])
        deploy(gateway, deployment("pirate", 2, Lane.HOT, pinned=True))
        await until(lambda: len(scripted.told) == 2)
        deploy(gateway, deployment("pirate", 1, Lane.HOT))
        await until(lambda: len(scripted.told) == 3)
        again = ExternalEngine(
            EngineAddress.parse(f"unix:{scripted.socket}"),
            "tiny",
            connect_timeout=1,
            start_timeout=5,
        )
        await again.start()
        running.engine = again
        await until(lambda: len(scripted.told) == 4)
        deploy(gateway, deployment("pirate", 2, Lane.HOT))
        await until(lambda: len(scripted.told) == 5)
        await asyncio.sleep(0.1)
        await again.stop()
    assert scripted.told == [[first], sorted([first, second]), [second], [second], []]
