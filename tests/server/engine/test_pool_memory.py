"""The pool's limits: who is evicted for whom, and what a refusal says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.errors import EngineUnavailable
from server.engine.merged import MergedState
from server.engine.pool import EnginePool
from server.engine.process import session_members
from tests.server.engine.small_pool import (
    BASE,
    SIZE,
    SmallEngines,
    has,
    model,
    pid_of,
    status,
    until,
)

A, B, C = model("a"), model("b"), model("c")


@pytest.fixture
def small(tmp_path: Path) -> SmallEngines:
    return SmallEngines(tmp_path)


@pytest.fixture
async def pool(small: SmallEngines) -> AsyncIterator[EnginePool]:
    """Room for two engines besides the base's; idle ones are never stopped."""
    made = small.pool()
    yield made
    await made.close()


async def test_the_least_recently_used_idle_engine_goes_for_the_third(
    small: SmallEngines, pool: EnginePool
) -> None:
    (await pool.lease(A, wait=15)).release()
    (await pool.lease(B, wait=15)).release()
    (await pool.lease(A, wait=15)).release()
    pid = pid_of(pool, "b")
    (await pool.lease(C, wait=15)).release()
    assert status(pool, "b").state is MergedState.STOPPED
    # It is gone before the other starts: both together would not fit.
    assert session_members(pid) == []
    assert pool.ready(A.digest)
    assert (pool.counts.evictions, pool.counts.refusals) == (1, 0)
    assert pool.memory().merged == 2 * SIZE


async def test_nobody_busy_or_pinned_goes_and_the_refusal_has_the_figures(
    small: SmallEngines, pool: EnginePool
) -> None:
    pool.retain({one.digest: one for one in (A, B, C)}, {A.digest})
    busy = await pool.lease(B, wait=15)
    await until(lambda: pool.ready(A.digest))
    with pytest.raises(EngineUnavailable) as refused:
        await pool.lease(C, wait=15)
    assert refused.value.message == (
        "the engine of c needs 0.1 GiB (0.1 weights + 0.0 KV cache + 0.0 processes); 0.0 of 0.3 "
        "GiB are free: the base's engine has 0.1, a 0.1 (pinned), b 0.1 (in use); raise "
        "memory_gib, or undeploy or unpin one"
    )
    assert refused.value.retry_after
    assert "c" not in small.tried
    assert status(pool, "c").detail == refused.value.message
    # Later there may be room: a refusal is not kept.
    busy.release()
    (await pool.lease(C, wait=15)).release()
    assert has(pool, "b", MergedState.STOPPED)


async def test_memory_that_others_took_meanwhile_is_not_given_out(small: SmallEngines) -> None:
    outside = 0
    small.available = lambda: 2 * SIZE - crowded.memory().merged - outside
    crowded: EnginePool = small.pool()
    try:
        (await crowded.lease(A, wait=15)).release()
        # Half of what was left.
        outside = SIZE // 2
        small.sizes["b"] = SIZE // 2
        (await crowded.lease(B, wait=15)).release()
        small.sizes["c"] = 2 * SIZE
        with pytest.raises(EngineUnavailable, match=r"other programs on this machine 0.1; end"):
            await crowded.lease(C, wait=15)
        # Nobody went for it: both together would not have been enough.
        assert crowded.counts.evictions == 0
        small.sizes["c"] = SIZE
        (await crowded.lease(C, wait=15)).release()
        assert has(crowded, "a", MergedState.STOPPED)
        assert crowded.ready(B.digest)
    finally:
        await crowded.close()


async def test_what_could_never_fit_is_refused_and_nobody_goes_for_it(
    small: SmallEngines, pool: EnginePool
) -> None:
    (await pool.lease(A, wait=15)).release()
    small.sizes["c"] = 3 * SIZE
    with pytest.raises(EngineUnavailable, match=r"needs 0.3 GiB .*of 0.3 GiB the base's engine"):
        await pool.lease(C, wait=15)
    assert pool.ready(A.digest)
    assert pool.counts.evictions == 0


async def test_places_are_bounded_too(small: SmallEngines) -> None:
    pool = small.pool(limit=BASE + 10 * SIZE, merged_engines=1)
    try:
        with (
            await pool.lease(A, wait=15),
            pytest.raises(
                EngineUnavailable, match=r"merged_engines allows 1, which are a 0.1 \(in use\)"
            ),
        ):
            await pool.lease(B, wait=15)
        (await pool.lease(B, wait=15)).release()
        assert has(pool, "a", MergedState.STOPPED)
    finally:
        await pool.close()


async def test_what_was_just_used_is_not_evicted_before_it_has_rested(
    small: SmallEngines,
) -> None:
    pool = small.pool(merged_engines=1, grace=1.0)
    try:
        (await pool.lease(A, wait=15)).release()
        second = asyncio.create_task(pool.lease(B, wait=15))
        for _ in range(6):
            await asyncio.sleep(0.1)
            (await pool.lease(A, wait=0)).release()
            assert status(pool, "b").state is MergedState.QUEUED
        (await second).release()
        assert has(pool, "a", MergedState.STOPPED)
    finally:
        await pool.close()


async def test_nobody_goes_for_a_model_that_nobody_waits_for_any_more(
    small: SmallEngines,
) -> None:
    pool = small.pool(merged_engines=1, grace=0.5)
    try:
        (await pool.lease(A, wait=15)).release()
        second = asyncio.create_task(pool.lease(B, wait=15))
        await until(lambda: has(pool, "b", MergedState.QUEUED))
        second.cancel()
        await until(lambda: has(pool, "b", MergedState.STOPPED))
        await asyncio.sleep(0.6)
        assert pool.ready(A.digest)
        assert small.tried == ["a"]
    finally:
        await pool.close()


async def test_a_start_ahead_of_time_that_finds_no_room_says_so(pool: EnginePool) -> None:
    holds = [await pool.lease(A, wait=15), await pool.lease(B, wait=15)]
    pool.ensure(C)
    await until(lambda: pool.counts.refusals == 1)
    await until(lambda: has(pool, "c", MergedState.STOPPED))
    assert "GiB are free" in status(pool, "c").detail
    for hold in holds:
        hold.release()


async def test_two_that_fit_one_by_one_do_not_take_the_same_room(small: SmallEngines) -> None:
    pool = small.pool(limit=BASE + SIZE)
    try:
        first = asyncio.create_task(pool.lease(A, wait=15))
        second = asyncio.create_task(pool.lease(B, wait=15))
        done = await asyncio.gather(first, second, return_exceptions=True)
        refused = [one for one in done if isinstance(one, EngineUnavailable)]
        assert len(refused) == 1
        assert pool.memory().merged == SIZE
        for one in done:
            if not isinstance(one, BaseException):
                one.release()
    finally:
        await pool.close()
