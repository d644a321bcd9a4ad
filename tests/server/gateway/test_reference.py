"""Documentation is a contract: it lists exactly what there is."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from prometheus_client.parser import text_string_to_metric_families

from adapters.jobs.models import JobState
from adapters.tenants import Quota
from server.engine.engines import Engine
from server.engine.not_finite import Fault
from server.engine.residency import ResidencyCache
from server.engine.transport import EngineAddress, EngineTransport
from server.gateway.admission.tickets import Cost, Ticket
from server.gateway.background import Background
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.degeneration import Degeneration
from server.gateway.engine_metrics import EngineMetrics
from server.gateway.guard import Guard
from server.gateway.judging import Reason
from server.gateway.observing import Role
from server.gateway.picker_metrics import PickerMetrics
from server.gateway.reference import settings_reference
from server.gateway.residents import ResidencyCollector
from server.gateway.routes import ENGINE_ROUTES
from tests.server.engine import telling
from tests.server.engine.test_vllm_metrics import written
from tests.server.gateway.lane_cases import MODEL, ask, merged, until
from tests.server.gateway.scripted import Gateway, ScriptedEngine, sse
from tests.server.gateway.test_background import Store, job
from tests.server.gateway.test_background import snapshot as merged_snapshot
from tests.server.gateway.test_exposition import engine_telling
from tests.server.gateway.test_guard import Catalog as GuardedCatalog
from tests.server.gateway.test_guard import fails

DOCS = Path(__file__).parents[3] / "docs"
EVENTS = [
    b'data: {"choices":[{"text":"a"}]}\n\n',
    b'data: {"choices":[{"text":"b"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
]


def test_the_settings_are_documented() -> None:
    assert (DOCS / "settings.md").read_text() == settings_reference()


async def test_the_metrics_are_documented(
    gateway: Gateway, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.handler = lambda request, _: sse(request, EVENTS)
    async with gateway.post("/v1/completions", json={"model": "pirate", "stream": True}) as answer:
        await answer.read()
    await gateway.settled("adapterctl_completion_tokens_total", 2, adapter="pirate")
    await _quarantine(gateway, engine)
    own = CanaryMetrics(gateway.state.metrics)
    own.rolled_back("pirate", Reason.ERRORS)
    own.rollback_failed("pirate")
    own.degenerate("pirate", Role.CANARY, Degeneration.EMPTY)
    own.scored("pirate", Role.CANARY, 1.0)
    own.copied("pirate", "ok")
    own.compared("pirate", 1.0, same=True)
    gateway.state.quotas.replace({"default": Quota(requests_per_minute=1)})
    assert [(await ask(gateway))[0] for _ in range(2)][1] == 429
    merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    await _register_residency(gateway, tmp_path)
    await _register_what_is_read(gateway, tmp_path)
    async with gateway.get("/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    found = set()
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        labels: set[str] = set()
        for sample in family.samples:
            labels |= set(sample.labels) - {"le"}
        found.add((name, family.type, ", ".join(sorted(labels)) or "–"))
    rows = re.findall(
        r"^\| `([\w:]+)` \| (\w+) \| ([\w, –]+) \|", (DOCS / "metrics.md").read_text(), re.M
    )
    assert {
        (name, kind, ", ".join(sorted(labels.split(", ")))) for name, kind, labels in rows
    } == found


async def _register_what_is_read(gateway: Gateway, directory: Path) -> None:
    """Jobs and merges, and what an engine says of itself; a request that waits."""
    state = gateway.state
    background = Background(
        directory,
        Store([job(1, JobState.SUCCEEDED, 60), job(2, JobState.RUNNING)]),
        state.snapshot,
        state.metrics.label,
    )
    background.renew(merged_snapshot(), {"base": os.getpid()})
    said = written({"tiny": 1})
    async with engine_telling(directory / "m.sock", said, asyncio.Event()) as address:
        engines = EngineMetrics(lambda: {"base": address})
        await engines.read()
    status = state.engine.status().model_copy(update={"slots": 4})
    engine = SimpleNamespace(status=lambda: status)
    cache = ResidencyCache(state.engine.transport)
    doors = state.lanes.doors
    picker = PickerMetrics(cast(Engine, engine), state.snapshot, doors, engines, cache)
    for collector in (background, engines, picker):
        state.metrics.registry.register(collector)
    door = doors.at("base", state.engine.transport())
    longest = Cost(prompt_tokens=door.core.limits.prompt_tokens)
    assert [door.enter(Ticket("default", None, longest)).admitted for _ in range(2)] == [
        True,
        False,
    ]


async def _quarantine(gateway: Gateway, engine: ScriptedEngine) -> None:
    guard = Guard(
        gateway.registry.current,
        GuardedCatalog(gateway).quarantine,
        lambda: None,
        gateway.state.placing.kept_back,
        gateway.state.metrics,
    )
    gateway.state.observers.append(guard.observe)
    engine.handler = fails(Fault.ADAPTER)
    assert (await ask(gateway))[0] == 502
    await guard.close()


async def _register_residency(gateway: Gateway, directory: Path) -> None:
    """Of an engine that tells what it holds."""
    state = gateway.state
    transport = EngineTransport(EngineAddress("http://engine", directory / "t.sock"), 1)
    cache = ResidencyCache(lambda: transport)
    async with telling.engine(telling.Answers(), directory / "t.sock"):
        await cache.fresh()
    await transport.close()
    collector = ResidencyCollector(cache, state.base.name, state.snapshot, state.metrics.label)
    state.metrics.registry.register(collector)


def test_the_routes_are_documented() -> None:
    text = (DOCS / "http.md").read_text()
    for route in ENGINE_ROUTES:
        assert f"/{route.path.rpartition('/')[2]}" in text
