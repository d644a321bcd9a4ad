"""The pool of merged engines over real processes: starting, sharing, failing, ending."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import server.engine.merged as merged_module
import server.engine.supervisor as supervisor_module
from adapters.errors import EngineUnavailable, NotDeployed
from server.engine.http_connection import ConnectionBroken
from server.engine.merged import MergedState
from server.engine.pool import EnginePool
from server.engine.process import session_members
from tests.server.engine.small_pool import (
    SIZE,
    SmallEngines,
    has,
    model,
    pid_of,
    status,
    until,
)

A, B = model("a"), model("b")


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
    assert small.held == []


async def test_leases_share_one_start_and_are_counted(
    small: SmallEngines, pool: EnginePool
) -> None:
    small.modes["a"] = "slow"
    assert not pool.ready(A.digest)
    assert pool.try_hold(A.digest) is None
    waiting = [asyncio.create_task(pool.lease(A, wait=15)) for _ in range(5)]
    await until(lambda: has(pool, "a", MergedState.STARTING) and small.tried == ["a"])
    assert status(pool, "a").waiting == 5
    # gc is kept from the model before there is a process that reads it.
    assert small.held == ["a"]
    holds = await asyncio.gather(*waiting)
    assert small.tried == ["a"]
    assert pool.ready(A.digest)
    now = status(pool, "a")
    assert (now.in_flight, now.waiting, now.memory) == (5, 0, SIZE)
    assert now.start_seconds is not None
    assert now.start_seconds >= 1
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
    with await pool.lease(A, wait=15):
        assert status(pool, "a").in_flight == 1
    assert small.tried == ["a"]
    assert (status(pool, "a").in_flight, status(pool, "a").waiting) == (0, 0)


async def test_an_engine_can_be_started_ahead_of_time(pool: EnginePool) -> None:
    pool.ensure(A)
    await until(lambda: pool.ready(A.digest))
    hold = pool.try_hold(A.digest)
    assert hold is not None
    hold.release()


async def test_an_idle_engine_is_stopped_and_started_again_on_demand(
    small: SmallEngines,
) -> None:
    pool = small.pool(merged_idle=0.4)
    try:
        hold = await pool.lease(A, wait=15)
        pid = pid_of(pool, "a")
        await asyncio.sleep(0.8)
        # In use is not idle, however long it takes.
        assert pool.ready(A.digest)
        hold.release()
        await until(lambda: has(pool, "a", MergedState.STOPPED))
        assert session_members(pid) == []
        assert (small.held, pool.memory().merged, pool.counts.idle_stops) == ([], 0, 1)
        (await pool.lease(A, wait=15)).release()
        assert small.tried == ["a", "a"]
    finally:
        await pool.close()


async def test_a_pinned_engine_is_started_and_stays(small: SmallEngines) -> None:
    pool = small.pool(merged_idle=0.1)
    try:
        pool.retain({A.digest: A, B.digest: B}, {A.digest})
        await until(lambda: pool.ready(A.digest))
        (await pool.lease(B, wait=15)).release()
        await until(lambda: has(pool, "b", MergedState.STOPPED))
        assert pool.ready(A.digest)
        assert status(pool, "a").pinned
        pool.retain({A.digest: A, B.digest: B}, set())
        await until(lambda: has(pool, "a", MergedState.STOPPED))
    finally:
        await pool.close()


async def test_a_start_that_fails_is_reported_and_not_repeated_before_its_time(
    small: SmallEngines, pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_module, "FIRST_BACKOFF", 0.5)
    small.modes["a"] = "fail"
    waiting = [asyncio.create_task(pool.lease(A, wait=15)) for _ in range(3)]
    failures = await asyncio.gather(*waiting, return_exceptions=True)
    for failure in failures:
        assert isinstance(failure, EngineUnavailable)
        assert "OSError: no space for the weights" in failure.message
        assert "\n" not in failure.message
        assert failure.retry_after == 1
    now = status(pool, "a")
    assert (now.state, now.memory, now.failures) == (MergedState.FAILED, 0, 1)
    assert "no space for the weights" in now.detail
    assert now.log_tail.startswith("loading the weights\n")
    assert now.retry_in is not None
    with pytest.raises(EngineUnavailable, match="tried again in"):
        await pool.lease(A, wait=15)
    assert small.tried == ["a"]

    await until(lambda: (status(pool, "a").retry_in or 0) == 0)
    with pytest.raises(EngineUnavailable):
        await pool.lease(A, wait=15)
    assert small.tried == ["a", "a"]
    # The second back-off is twice the first.
    assert (status(pool, "a").retry_in or 0) > 0.5

    small.modes["a"] = "serve"
    await until(lambda: (status(pool, "a").retry_in or 0) == 0)
    (await pool.lease(A, wait=15)).release()
    now = status(pool, "a")
    assert (now.state, now.detail, now.log_tail) == (MergedState.READY, "", "")


async def test_a_success_forgets_earlier_failures(
    small: SmallEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_module, "FIRST_BACKOFF", 0.3)
    pool = small.pool(merged_idle=0.05)
    try:
        for mode in ("fail", "serve", "fail"):
            small.modes["a"] = mode
            if mode == "serve":
                await until(lambda: (status(pool, "a").retry_in or 0) == 0)
                (await pool.lease(A, wait=15)).release()
                await until(lambda: has(pool, "a", MergedState.STOPPED))
            else:
                with pytest.raises(EngineUnavailable):
                    await pool.lease(A, wait=15)
                assert 0 < (status(pool, "a").retry_in or 0) <= 0.3
    finally:
        await pool.close()


async def test_a_killed_engine_fails_what_it_answers_and_comes_back_for_others(
    pool: EnginePool,
) -> None:
    hold = await pool.lease(A, wait=15)
    answering = asyncio.create_task(hold.transport().send("GET", "/wait", body=None, headers={}))
    pid = pid_of(pool, "a")
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((ConnectionBroken, EngineUnavailable)):
        await answering
    hold.release()
    await until(lambda: not pool.ready(A.digest))
    assert pool.try_hold(A.digest) is None
    assert pool.memory().merged == SIZE
    (await pool.lease(A, wait=15)).release()
    now = status(pool, "a")
    assert (now.restarts, now.in_flight, now.waiting) == (1, 0, 0)
    assert now.pid != pid
    assert session_members(pid) == []


async def test_an_engine_that_cannot_come_back_says_why_and_when(
    small: SmallEngines, pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.5)
    (await pool.lease(A, wait=15)).release()
    small.modes["a"] = "fail"
    os.kill(pid_of(pool, "a"), signal.SIGKILL)
    await until(lambda: not pool.ready(A.digest))
    with pytest.raises(EngineUnavailable, match=r"no space for the weights.* tried again in"):
        await pool.lease(A, wait=15)
    now = status(pool, "a")
    assert now.state is MergedState.DOWN
    assert now.log_tail.endswith("it is over")


async def test_a_killed_engine_that_nobody_uses_is_given_up(small: SmallEngines) -> None:
    pool = small.pool(merged_idle=0.6)
    try:
        (await pool.lease(A, wait=15)).release()
        small.modes["a"] = "deaf"
        os.kill(pid_of(pool, "a"), signal.SIGKILL)
        await until(lambda: has(pool, "a", MergedState.STOPPED))
        assert small.held == []
    finally:
        await pool.close()


async def test_what_is_not_deployed_any_more_ends_its_answers_first(
    small: SmallEngines, pool: EnginePool
) -> None:
    pool.retain({A.digest: A, B.digest: B}, set())
    hold = await pool.lease(A, wait=15)
    pid = pid_of(pool, "a")
    pool.retain({B.digest: B}, set())
    assert status(pool, "a").state is MergedState.DRAINING
    assert not pool.ready(A.digest)
    assert pool.try_hold(A.digest) is None
    with pytest.raises(NotDeployed, match="'a' was taken out of service"):
        await pool.lease(A, wait=15)
    assert await hold.transport().healthy(timeout=1)
    # Deployed again meanwhile: the engine just goes on.
    pool.retain({A.digest: A}, set())
    with await pool.lease(A, wait=15):
        pass
    pool.retain({}, set())
    hold.release()
    await until(lambda: [one.name for one in pool.statuses()] == [])
    assert session_members(pid) == []
    assert small.tried == ["a"]


async def test_a_drain_has_an_end(small: SmallEngines) -> None:
    pool = small.pool(merged_drain=0.3)
    try:
        hold = await pool.lease(A, wait=15)
        answering = asyncio.create_task(
            hold.transport().send("GET", "/wait", body=None, headers={})
        )
        pool.retain({}, set())
        began = time.monotonic()
        with pytest.raises((ConnectionBroken, EngineUnavailable)):
            await answering
        assert time.monotonic() - began >= 0.2
        await until(lambda: pool.statuses() == [])
        with pytest.raises(EngineUnavailable):
            hold.transport()
        hold.release()
    finally:
        await pool.close()


async def test_a_start_is_given_up_when_its_model_is_not_deployed_any_more(
    small: SmallEngines, pool: EnginePool
) -> None:
    small.modes["a"] = "deaf"
    pool.retain({A.digest: A}, set())
    waiting = asyncio.create_task(pool.lease(A, wait=15))
    await until(lambda: has(pool, "a", MergedState.STARTING) and bool(status(pool, "a").pid))
    pid = pid_of(pool, "a")
    pool.retain({}, set())
    with pytest.raises(NotDeployed):
        await waiting
    await until(lambda: pool.statuses() == [])
    assert session_members(pid) == []
    assert pool.memory().merged == 0


async def test_closing_stops_what_runs_and_what_starts(small: SmallEngines) -> None:
    pool = small.pool()
    small.modes["b"] = "deaf"
    (await pool.lease(A, wait=15)).release()
    waiting = asyncio.create_task(pool.lease(B, wait=15))
    await until(lambda: has(pool, "b", MergedState.STARTING) and bool(status(pool, "b").pid))
    pids = [pid_of(pool, "a"), pid_of(pool, "b")]
    await pool.close()
    with pytest.raises(EngineUnavailable, match="server is stopping"):
        await waiting
    with pytest.raises(EngineUnavailable, match="server is stopping"):
        await pool.lease(A, wait=15)
    assert [session_members(pid) for pid in pids] == [[], []]
    assert small.held == []
    assert pool.memory().merged == 0


async def test_a_mistake_of_ours_is_a_failed_start_too(
    small: SmallEngines, pool: EnginePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("who thought of this")

    monkeypatch.setattr(pool, "_prepare", broken)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    try:
        with pytest.raises(EngineUnavailable, match="who thought of this"):
            await pool.lease(A, wait=15)
        assert status(pool, "a").state is MergedState.FAILED
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
