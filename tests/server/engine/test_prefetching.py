"""Hints to an engine over real HTTP: sent once, few at a time, and nobody is hurt by a lost one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.errors import EngineUnavailable
from server.engine.prefetching import FRESH, MOST, Prefetcher
from server.engine.transport import EngineAddress, EngineTransport
from tests.server.engine.telling import ONE, TWO, Answers, engine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def answers(tmp_path: Path) -> AsyncIterator[Answers]:
    found = Answers()
    found.status, found.document = 202, {}
    async with engine(found, tmp_path / "e.sock"):
        yield found


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[EngineTransport]:
    found = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
    yield found
    await found.close()


async def settled(prefetcher: Prefetcher) -> None:
    """Until nothing is under way."""
    while prefetcher._tasks:
        await asyncio.gather(*prefetcher._tasks)
        await asyncio.sleep(0)


async def test_an_adapter_is_announced_once_until_that_is_old(
    answers: Answers, transport: EngineTransport
) -> None:
    clock = Clock()
    prefetcher = Prefetcher(lambda: transport, clock=clock)
    for digest in (ONE, TWO, ONE):
        prefetcher.prefetch(f"sha256:{digest}")
    assert not answers.asked
    await settled(prefetcher)
    said = [("/adapterctl/prefetch", {"name": f"sha256-{d}", "wait": False}) for d in (ONE, TWO)]
    assert sorted(answers.asked, key=str) == said
    prefetcher.prefetch(f"sha256:{ONE}")
    await settled(prefetcher)
    assert len(answers.asked) == 2
    clock.now += FRESH
    prefetcher.prefetch(f"sha256:{ONE}")
    await settled(prefetcher)
    assert len(answers.asked) == 3


async def test_beside_too_many_others_it_is_not_sent(
    answers: Answers, transport: EngineTransport
) -> None:
    prefetcher = Prefetcher(lambda: transport)
    for number in range(MOST + 3):
        prefetcher.prefetch(f"sha256:{number:064}")
    assert (prefetcher.sent, prefetcher.dropped) == (MOST, 3)
    await settled(prefetcher)
    # What was dropped is sent when it is said again.
    prefetcher.prefetch(f"sha256:{MOST:064}")
    await settled(prefetcher)
    assert len(answers.asked) == MOST + 1


@pytest.mark.parametrize("status", [404, 200, 501])
async def test_an_engine_that_does_not_know_it_is_not_asked_again(
    answers: Answers, transport: EngineTransport, status: int
) -> None:
    answers.status = status
    prefetcher = Prefetcher(lambda: transport)
    prefetcher.prefetch(f"sha256:{ONE}")
    await settled(prefetcher)
    prefetcher.prefetch(f"sha256:{TWO}")
    await settled(prefetcher)
    assert len(answers.asked) == 1


async def test_nothing_is_raised_where_no_engine_is(transport: EngineTransport) -> None:
    def away() -> EngineTransport:
        raise EngineUnavailable("not ready")

    Prefetcher(away).prefetch(f"sha256:{ONE}")
    # Nobody listens on this socket.
    prefetcher = Prefetcher(lambda: transport)
    prefetcher.prefetch(f"sha256:{ONE}")
    await settled(prefetcher)
    assert prefetcher.sent == 1


async def test_what_is_under_way_ends_with_it(tmp_path: Path, transport: EngineTransport) -> None:
    server = await asyncio.start_unix_server(lambda *_: None, tmp_path / "e.sock")
    async with server:
        prefetcher = Prefetcher(lambda: transport)
        prefetcher.prefetch(f"sha256:{ONE}")
        await asyncio.sleep(0)
        await prefetcher.close()
        assert not prefetcher._tasks
