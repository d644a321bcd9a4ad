"""Counters in memory and in a real Redis: the same contract; and what is done without Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.errors import QuotaStorageDown
from server.gateway.quotas import redis_counters
from server.gateway.quotas.counters import Counters, MemoryCounters
from server.gateway.quotas.failing import PAUSE, FailingCounters
from server.gateway.quotas.redis_counters import FAULTS, RedisCounters
from tests.server.gateway.quotas.redis_server import RedisServer, redis_server


@pytest.fixture(params=["memory", "redis"])
async def counters(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Counters]:
    if request.param == "memory":
        yield MemoryCounters()
        return
    with redis_server(tmp_path) as server:
        made = RedisCounters(server.url)
        yield made
        await made.close()


async def test_what_is_taken_counts_until_it_is_too_much(counters: Counters) -> None:
    assert (await counters.look("a/requests")).used() == 0
    assert await counters.take("a/requests", 3, 5)
    assert await counters.take("a/requests", 2, 5)
    assert not await counters.take("a/requests", 1, 5)
    assert await counters.take("b/requests", 1, 5)
    window = await counters.look("a/requests")
    assert 4 < window.used() <= 5
    assert 60 <= window.reset() <= 120


async def test_of_many_at_once_as_many_get_in_as_may(counters: Counters) -> None:
    taken = await asyncio.gather(*(counters.take("a", 1, 7) for _ in range(30)))
    assert sum(taken) == 7


async def test_a_charge_counts_whatever_is_left(counters: Counters) -> None:
    await counters.charge("a/tokens", 10_000)
    await counters.charge("a/tokens", 2**33)
    window = await counters.look("a/tokens")
    assert window.used() > 2**33
    assert not await counters.take("a/tokens", 1, 10_000)
    assert window.until(10_000) > 60


async def test_places_are_for_so_many(counters: Counters) -> None:
    entered = await asyncio.gather(*(counters.enter("a", f"r{n}", 3) for n in range(5)))
    assert sum(entered) == 3
    assert await counters.enter("b", "r0", 3)
    first = entered.index(True)
    await counters.leave("a", f"r{first}")
    assert await counters.enter("a", "late", 3)
    assert not await counters.enter("a", "later", 3)


async def test_two_gateways_share_what_is_in_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        one, other = RedisCounters(server.url), RedisCounters(server.url)
        assert await one.take("a", 2, 3)
        assert await other.take("a", 1, 3)
        assert not await one.take("a", 1, 3)
        assert await one.enter("a", "of one", 1)
        assert not await other.enter("a", "of other", 1)
        await one.leave("a", "of one")
        assert await other.enter("a", "of other", 1)
        await one.close()
        await other.close()


async def test_a_gateway_that_died_gives_its_places_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counters, "LEASE", 2)
    monkeypatch.setattr(redis_counters, "_RENEWAL", 0.3)
    with redis_server(tmp_path) as server:
        dead, alive = RedisCounters(server.url), RedisCounters(server.url)
        assert await dead.enter("dead", "r", 1)
        assert await alive.enter("alive", "r", 1)
        await dead.close()  # As if killed: it does not say that its request has ended.
        other = RedisCounters(server.url)
        async with asyncio.timeout(10):
            while not await other.enter("dead", "r2", 1):
                await asyncio.sleep(0.1)
        # Longer ago than a lease lasts, and renewed since.
        assert not await other.enter("alive", "r2", 1)
        await alive.close()
        await other.close()


def up(counters: FailingCounters) -> bool:
    return counters.up


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path)


async def test_without_redis_a_server_counts_alone(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = Clock()
    counters = FailingCounters(RedisCounters(server.url), FAULTS, closed=False, clock=clock)
    assert await counters.enter("a", "r", 1)
    assert not await counters.enter("a", "r2", 1)
    assert await counters.take("a", 2, 2)
    assert not await counters.take("a", 1, 2)
    assert not up(counters)
    assert caplog.text.count("this server counts alone") == 1
    server.start()
    try:
        assert not await counters.take("a", 1, 2), "it is not asked at every request"
        clock.now += PAUSE
        assert await counters.take("a", 1, 2)
        assert up(counters)
        assert caplog.text.count("answers again") == 1
        # It entered here, not there.
        await counters.leave("a", "r")
        assert await counters.enter("a", "r", 1)
        server.stop()
        await counters.leave("a", "r")
        assert not up(counters)
    finally:
        server.stop()
        await counters.close()


async def test_without_redis_a_closed_server_refuses(server: RedisServer) -> None:
    counters = FailingCounters(RedisCounters(server.url), FAULTS, closed=True)
    with pytest.raises(QuotaStorageDown, match="try again") as refused:
        await counters.take("a", 1, 2)
    assert refused.value.retry_after == 1
    await counters.close()


async def test_a_redis_that_hangs_costs_a_request_little(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    hanging = await asyncio.start_unix_server(silent, tmp_path / "silent.sock")
    counters = FailingCounters(
        RedisCounters(f"unix://{tmp_path}/silent.sock"), FAULTS, closed=False
    )
    async with asyncio.timeout(5):
        assert await counters.take("a", 1, 1)
    assert not up(counters)
    await counters.close()
    hanging.close()
