"""The document of `adapterctl top`: rows by traffic, places by the engine, engines, advice."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.errors import Conflict, EngineUnavailable, UsageError
from adapters.frozen import Lane
from adapters.lanes.models import Deployment
from adapters.models import AdapterRecord
from adapters.registry.snapshot import Snapshot
from adapters.store.layout import StoreLayout
from server.engine.capacity import Capacity
from server.engine.engines import EngineState, EngineStatus
from server.engine.transport import EngineAddress, EngineTransport
from server.gateway.lane_models import MergedState
from server.gateway.measured import MeasuredModels
from server.gateway.metrics import GatewayMetrics
from server.gateway.residents import ResidencyCollector
from server.gateway.top import Sight, hot_pins
from tests.server.engine.telling import TOLD, Answers, engine
from tests.server.gateway.scripted import (
    BIG,
    NOW,
    PIRATE,
    PIRATE_2,
    WEIGHTY,
    base_record,
    example_snapshot,
)
from tests.server.gateway.test_measured import MODEL, report, write
from tests.server.gateway.test_traffic import ONE

FOREIGN_NAME = "sha256-" + "9" * 64


def name(digest: str) -> str:
    return digest.replace(":", "-")


HELD = {
    **TOLD,
    "slots": [name(PIRATE), name(PIRATE_2), None, FOREIGN_NAME],
    "cpu": [name(BIG), name(PIRATE), name(PIRATE_2), FOREIGN_NAME],
    "pinned": [name(PIRATE)],
    "loaded": {name(PIRATE_2): 9, name(PIRATE): 1},
}


class ReadyEngine:
    """The base's engine: `telling` is where it answers; None: it is not ready."""

    restarts = 0
    capacity: Capacity | None = None

    def __init__(self, telling: EngineTransport):
        self.telling: EngineTransport | None = telling

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def transport(self) -> EngineTransport:
        if self.telling is None:
            raise EngineUnavailable("the engine is down", retry_after=5)
        return self.telling

    def status(self) -> EngineStatus:
        return EngineStatus(
            id="e",
            kind="supervised",
            base="tiny",
            state=EngineState.READY if self.telling else EngineState.DOWN,
            address="unix:e",
            pid=1,
            restarts=0,
            since=datetime.now(UTC) - timedelta(hours=2),
            slots=4,
            cpu_adapters=9,
            max_rank=16,
            detail="",
        )


def deployed(snapshot: Snapshot, *deployments: Deployment) -> Snapshot:
    adapters: dict[str, AdapterRecord] = dict(snapshot.adapters)
    for one in deployments:
        record = adapters[one.adapter]
        adapters[one.adapter] = record.model_copy(
            update={"deployments": {**record.deployments, one.number: one}}
        )
    return Snapshot(snapshot.bases, adapters, snapshot.generation + 1)


def deployment(adapter: str, number: int, **more: Any) -> Deployment:
    return Deployment(adapter=adapter, number=number, at=NOW, actor="test", **more)


SNAPSHOT = deployed(
    example_snapshot(),
    deployment("pirate", 1, lane=Lane.HOT, pinned=True),
    deployment("weighty", 2, lane=Lane.MERGED, model=MODEL),
)
RUNNING = MergedState(
    id="m", digest=MODEL, name="weighty:v2", base="tiny", state="ready", memory_bytes=10**9
)


@pytest.fixture
async def answers(tmp_path: Path) -> AsyncIterator[Answers]:
    found = Answers()
    found.document = HELD
    async with engine(found, tmp_path / "e.sock"):
        yield found


@pytest.fixture
async def sight(answers: Answers, tmp_path: Path) -> AsyncIterator[Sight]:
    transport = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
    found = Sight(
        base_record(),
        ReadyEngine(transport),
        lambda: SNAPSHOT,
        MeasuredModels(StoreLayout(tmp_path)),
        merged=lambda: [RUNNING],
        in_flight=lambda: {("pirate", 2): 3, ("weighty", 1): 1, ("tiny", None): 2},
        free_bytes=lambda: 10**10,
    )
    yield found
    await found.close()
    await transport.close()


def ask(sight: Sight, adapter: str, number: int | None, lane: str, times: int, **more: Any) -> None:
    for _ in range(times):
        sight.traffic.observe(
            replace(ONE, adapter=adapter, number=number, lane=lane, ended=time.monotonic(), **more)
        )


async def test_rows_come_by_tokens_with_places_from_the_engine(sight: Sight) -> None:
    ask(sight, "pirate", 2, "hot", 6)
    ask(sight, "pirate", 1, "hot", 2, outcome="engine_died")
    ask(sight, "weighty", 2, "merged", 1)
    ask(sight, "tiny", None, "base", 1, prompt_tokens=1, completion_tokens=0)
    await sight.cache.fresh()
    top = sight.top()
    assert [(row.adapter, row.number, row.lane) for row in top.rows] == [
        ("pirate", 2, "hot"),
        ("pirate", 1, "hot"),
        ("weighty", 2, "merged"),
        ("tiny", None, "base"),
        # Nothing ended yet.
        ("weighty", 1, "hot"),
    ]
    assert [row.in_flight for row in top.rows] == [3, 0, 0, 2, 1]
    assert [row.place for row in top.rows] == ["slot", "slot", None, None, "cpu"]
    assert [row.pinned for row in top.rows] == [False, True, False, False, False]
    assert top.rows[1].errors_by_code == {"engine_died": 2}
    assert sum(row.token_share for row in top.rows) == pytest.approx(1)
    assert top.requests == 10
    assert top.versions == 5
    assert top.window == 60


async def test_engines_with_their_queue_and_slots(sight: Sight) -> None:
    await sight.cache.fresh()
    base, merged = sight.top().engines
    assert (base.lane, base.state, base.slots, base.slots_used) == ("base", "ready", 4, 3)
    assert base.queue == 3
    # What is answered now, but for the version that is served merged.
    assert base.in_flight == 6
    assert (merged.lane, merged.name, merged.memory_bytes) == ("merged", "weighty:v2", 10**9)


async def test_only_so_many_rows_are_drawn(sight: Sight) -> None:
    for number in range(20):
        ask(sight, f"a{number}", 1, "hot", 1)
    top = sight.top(rows=3)
    assert len(top.rows) == 3
    assert top.versions >= 20
    assert top.requests == 20


async def test_there_are_two_windows(sight: Sight) -> None:
    assert sight.top(900).window == 900
    with pytest.raises(UsageError, match="60 or 900"):
        sight.top(30)


async def test_residency_has_the_registrys_names(sight: Sight) -> None:
    assert sight.top().residency is None
    document = await sight.residency()
    assert document == sight.top().residency
    assert document.base == "tiny"
    names = [slot and slot.reference for slot in document.slots]
    assert names == ["pirate:v1", "pirate:v2", None, None]
    unknown = document.slots[3]
    assert unknown is not None
    assert unknown.digest == "sha256:" + "9" * 64
    assert [one.reference for one in document.cpu] == ["weighty:v1", "pirate:v1", "pirate:v2", None]
    assert [one.pinned for one in document.cpu] == [False, True, False, False]
    assert (document.loads, document.evictions, document.cpu_total) == (4, 1, 9)


async def test_an_engine_that_is_down_shows_no_places(sight: Sight) -> None:
    await sight.cache.fresh()
    ask(sight, "pirate", 2, "hot", 1)
    engine = sight._engine
    assert isinstance(engine, ReadyEngine)
    engine.telling = None
    top = sight.top()
    assert top.residency is None
    assert top.rows[0].place is None
    assert top.engines[0].state == "down"
    with pytest.raises(EngineUnavailable):
        await sight.residency()


async def test_an_engine_that_cannot_say_is_empty(sight: Sight, answers: Answers) -> None:
    answers.status = 404
    assert (await sight.residency()).slots == ()
    assert sight.top().residency is None


async def test_advice_is_drawn_from_what_was_seen(sight: Sight, tmp_path: Path) -> None:
    """A hot version with most of the tokens, a measured model of it; another read from disk nine
    times in two hours."""
    source = report()
    source["lineage"][1]["origin"]["digest"] = PIRATE
    snapshot = example_snapshot()
    record = (
        snapshot.adapters["pirate"]
        .versions[1]
        .model_copy(update={"adapter": "pirate-awq", "digest": MODEL, "method": "merged-model"})
    )
    model = AdapterRecord(name="pirate-awq", default_tag="latest", versions={1: record}, tags={})
    write(tmp_path, MODEL, json.dumps(source))
    adapters = {**SNAPSHOT.adapters, "pirate-awq": model}
    sight._snapshot = lambda: Snapshot(SNAPSHOT.bases, adapters, 9)
    ask(sight, "pirate", 1, "hot", 80, seconds=5.2)
    ask(sight, "pirate", 2, "hot", 20)
    sight.start()
    async with asyncio.timeout(5):
        while len(sight.advice()) < 2:
            await asyncio.sleep(0.01)
    merge, pin = sight.top().advice
    assert (merge.kind, merge.adapter, merge.number) == ("merge", "pirate", 1)
    # 0.5 s a token, many at once; 8 streams of the report's model got 96 tokens a second.
    assert merge.expected_speed == pytest.approx(6, rel=0.06)
    assert (pin.kind, pin.number) == ("pin", 2)
    assert "9 times" in pin.reason


async def test_a_prefetch_says_where_the_version_is(sight: Sight, answers: Answers) -> None:
    answers.document = {**HELD, "seconds": 0.5}
    found = await sight.prefetch(SNAPSHOT.adapters["weighty"].versions[1])
    assert (found.adapter, found.number, found.lane) == ("weighty", 1, Lane.HOT)
    assert (found.place, found.seconds) == ("cpu", 0.5)
    assert answers.asked[0] == ("/adapterctl/prefetch", {"name": name(BIG)})


def test_pins_of_the_hot_lane_go_to_the_engine() -> None:
    snapshot = deployed(
        SNAPSHOT,
        deployment("weighty", 1, lane=Lane.MERGED, pinned=True),
        deployment("weighty", 2, lane=Lane.HOT, pinned=True),
        deployment("elsewhere", 1, lane=Lane.HOT, pinned=True),
    )
    assert WEIGHTY not in hot_pins(snapshot, base_record().digest)
    assert hot_pins(snapshot, base_record().digest) == [PIRATE]


async def test_one_slot_stays_free_of_pins(sight: Sight) -> None:
    pirate, weighty = SNAPSHOT.adapters["pirate"], SNAPSHOT.adapters["weighty"]
    sight.check_pin(pirate.versions[2])
    extra = weighty.versions[1].model_copy(update={"number": 3, "digest": "sha256:" + "a" * 64})
    more = weighty.model_copy(update={"versions": {**weighty.versions, 3: extra}})
    known = Snapshot(SNAPSHOT.bases, {**SNAPSHOT.adapters, "weighty": more}, 2)
    full = deployed(known, *(_pinned(record, n) for record, n in ((pirate, 2), (more, 1))))
    sight._snapshot = lambda: full
    # It is pinned already, it has an engine of its own, it is another base's: no slot is asked for.
    sight.check_pin(pirate.versions[1])
    sight.check_pin(more.versions[2])
    sight.check_pin(SNAPSHOT.adapters["elsewhere"].versions[1])
    with pytest.raises(Conflict, match="4 adapters would be pinned, 4 slots"):
        sight.check_pin(extra)


def _pinned(record: AdapterRecord, number: int) -> Deployment:
    return deployment(record.name, number, lane=Lane.HOT, pinned=True)


async def test_metrics_count_what_the_engine_holds(sight: Sight) -> None:
    metrics = GatewayMetrics(CollectorRegistry(), adapters=1)
    registry = metrics.registry
    registry.register(ResidencyCollector(sight.cache, "tiny", lambda: SNAPSHOT, metrics.label))
    assert registry.get_sample_value("adapterctl_adapter_loads_total", {"base": "tiny"}) is None
    await sight.cache.fresh()
    read = registry.get_sample_value
    assert read("adapterctl_adapter_resident", {"adapter": "pirate", "where": "slot"}) == 2
    # One name has labels of its own here: weighty, and what the registry does not know, are others.
    assert read("adapterctl_adapter_resident", {"adapter": "other", "where": "cpu"}) == 2
    for state, count in (("used", 3), ("free", 1), ("pinned", 1)):
        assert read("adapterctl_engine_slots", {"base": "tiny", "state": state}) == count
    for metric, value in (
        ("loads_total", 4),
        ("evictions_total", 1),
        ("load_seconds_total", 0.5),
        ("swaps_total", 6),
        ("swap_seconds_total", 0.25),
        ("prefetched_total", 3),
        ("overlapped_total", 2),
    ):
        assert read(f"adapterctl_adapter_{metric}", {"base": "tiny"}) == value


async def test_one_content_is_resident_for_every_adapter_that_has_it(sight: Sight) -> None:
    twin = SNAPSHOT.adapters["pirate"].model_copy(update={"name": "buccaneer"})
    both = Snapshot(SNAPSHOT.bases, {**SNAPSHOT.adapters, "buccaneer": twin}, 2)
    metrics = GatewayMetrics(CollectorRegistry(), adapters=10)
    registry = metrics.registry
    registry.register(ResidencyCollector(sight.cache, "tiny", lambda: both, metrics.label))
    await sight.cache.fresh()
    for name in ("pirate", "buccaneer"):
        labels = {"adapter": name, "where": "slot"}
        assert registry.get_sample_value("adapterctl_adapter_resident", labels) == 2
