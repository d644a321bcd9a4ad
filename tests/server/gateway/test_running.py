"""What the admin API is told of the running server."""

from __future__ import annotations

import pytest

from adapters.errors import AdapterNotFound, NotDeployed, UsageError
from adapters.frozen import Lane
from adapters.store.layout import StoreLayout
from server.gateway.measured import MeasuredModels
from server.gateway.route_status import RouteStatus
from server.gateway.running import RunningLanes, free_bytes, merged_states
from server.gateway.top import Sight
from tests.server.gateway.lane_cases import MODEL, WEIGHTY_MODEL, ask, merged, says, until
from tests.server.gateway.scripted import WEIGHTY, Gateway, ScriptedEngine, store_blob
from tests.server.gateway.scripted_pool import SIZE


@pytest.fixture
def running(gateway: Gateway) -> RunningLanes:
    state = gateway.state
    sight = Sight(
        state.base,
        state.engine,
        state.snapshot,
        MeasuredModels(StoreLayout(state.settings.store)),
        merged=lambda: merged_states(gateway.pool),
        in_flight=lambda: state.in_flight,
        free_bytes=lambda: free_bytes(gateway.pool),
    )
    state.observers.append(sight.traffic.observe)
    return RunningLanes(state, gateway.pool, sight, lambda route: RouteStatus(route=route))


async def test_a_prefetch_of_a_merged_version_begins_its_engines_start(
    gateway: Gateway, running: RunningLanes
) -> None:
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.may_start.clear()
    found = await running.prefetch("weighty")
    assert (found.adapter, found.number, found.lane) == ("weighty", 2, Lane.MERGED)
    assert found.engine is not None
    assert found.engine.state == "starting"
    place.may_start.set()
    await until(lambda: running.merged()[0].state == "ready")
    (engine,) = running.merged()
    assert (engine.digest, engine.name, engine.memory_bytes) == (WEIGHTY_MODEL, "weighty:v2", SIZE)
    assert free_bytes(gateway.pool) == 3 * SIZE


async def test_a_prefetch_raises_what_a_request_would(
    gateway: Gateway, running: RunningLanes
) -> None:
    with pytest.raises(NotDeployed):
        await running.prefetch("weighty")
    with pytest.raises(AdapterNotFound):
        await running.prefetch("nobody")
    with pytest.raises(UsageError, match="is a base"):
        await running.prefetch("tiny")


async def test_a_start_that_fails_is_told_with_its_reason(
    gateway: Gateway, running: RunningLanes
) -> None:
    place = merged(gateway)
    place.fails = "ValueError: no such kernel"
    running.merged()
    await until(lambda: running.merged()[0].state == "failed")
    (engine,) = running.merged()
    assert "no such kernel" in engine.detail
    assert engine.retry_after is not None


async def test_top_has_both_lanes(
    gateway: Gateway, engine: ScriptedEngine, running: RunningLanes
) -> None:
    engine.handler = says("hot")
    store_blob(gateway.state.settings.store, WEIGHTY)
    merged(gateway)
    gateway.state.keep_up()
    await until(lambda: gateway.pool.ready(MODEL))
    await ask(gateway)
    await ask(gateway, "pirate:v2")
    await until(lambda: not gateway.state.in_flight)
    document = running.top()
    rows = {(row.adapter, row.number, row.lane): row.requests for row in document.rows}
    assert rows == {("pirate", 1, "merged"): 1, ("pirate", 2, "hot"): 1}
    assert [one.lane for one in document.engines] == ["base", "merged"]
