"""The pool of merged engines over real processes: starting, sharing, stopping, failing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import server.engine.supervisor as supervisor_module
from adapters.errors import EngineUnavailable
from server.engine.merged import MergedState
from server.engine.pool import EnginePool
from tests.server.engine.small_pool import SIZE, SmallEngines, has, model, status, until

A = model("a")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallEngines:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.1)
    monkeypatch.setattr(supervisor_module, "HEALTH_INTERVAL", 0.2)
    return SmallEngines(tmp_path)


@pytest.fixture
async def pool(small: SmallEngines) -> AsyncIterator[EnginePool]:
    """Room for two engines besides the base's; idle ones are never stopped."""
    made = small.pool()
    yield made
    await made.close()


async def test_leases_share_one_start_and_are_counted(
    small: SmallEngines, pool: EnginePool
) -> None:
    small.modes["a"] = "slow"
    assert not pool.ready(A.digest)
    assert pool.try_hold(A.digest) is None
    waiting = [asyncio.create_task(pool.lease(A, wait=15)) for _ in range(5)]
    await until(lambda: has(pool, "a", MergedState.STARTING))
    assert status(pool, "a").waiting == 5
    # The model is kept from gc before there is a process.
    assert small.held == ["a"]
    holds = await asyncio.gather(*waiting)
    assert small.tried == ["a"]
    assert pool.ready(A.digest)
    now = status(pool, "a")
    assert (now.in_flight, now.waiting, now.memory) == (5, 0, SIZE)
    assert now.start_seconds is not None
    assert holds[0].engine_model == "sha256-" + A.digest.removeprefix("sha256:")
    assert await holds[0].transport().healthy(timeout=1)
    for hold in holds:
        hold.release()
        hold.release()
    assert status(pool, "a").in_flight == 0


async def test_a_wait_that_ends_leaves_the_start_to_others(
    small: SmallEngines, pool: EnginePool
) -> None:
    small.modes["a"] = "slow"
    gone = asyncio.create_task(pool.lease(A, wait=15))
    await until(lambda: has(pool, "a", MergedState.STARTING))
    with pytest.raises(EngineUnavailable, match=r"engine of a is starting") as late:
        await pool.lease(A, wait=0.05)
    assert late.value.retry_after
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    hold = await pool.lease(A, wait=15)
    hold.release()
    assert small.tried == ["a"]
    assert (status(pool, "a").in_flight, status(pool, "a").waiting) == (0, 0)
