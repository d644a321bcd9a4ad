"""Work that is begun once, goes on, and has ended when close() returns."""

from __future__ import annotations

import asyncio

import pytest

from server.ongoing import Ongoing


class _Work:
    """Notes how often it was begun, and how it ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.runs = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        self.runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            # Ending may take a while: close() has to wait for it.
            await asyncio.sleep(0)
            self.runs.clear()
            self.ended += 1


async def test_it_is_begun_once_and_has_ended_when_close_returns() -> None:
    work = _Work()
    ongoing = Ongoing(work)
    assert work.begun == 0
    ongoing.start()
    ongoing.start()
    await work.runs.wait()
    await ongoing.close()
    assert (work.begun, work.ended) == (1, 1)


async def test_it_can_be_begun_again_once_it_was_closed() -> None:
    work = _Work()
    ongoing = Ongoing(work)
    for _ in range(2):
        ongoing.start()
        await work.runs.wait()
        await ongoing.close()
        await ongoing.close()
    assert (work.begun, work.ended) == (2, 2)


async def test_what_was_never_begun_can_be_closed() -> None:
    work = _Work()
    await Ongoing(work).close()
    assert work.begun == 0


async def test_what_has_ended_of_itself_is_not_begun_again() -> None:
    ended: list[int] = []
    over = asyncio.Event()

    async def once() -> None:
        ended.append(1)
        over.set()

    ongoing = Ongoing(once)
    ongoing.start()
    await over.wait()
    ongoing.start()
    await ongoing.close()
    assert ended == [1]


async def test_closing_tells_what_the_work_failed_with() -> None:
    failing = asyncio.Event()

    async def fail() -> None:
        failing.set()
        raise LookupError("what it was looking for")

    ongoing = Ongoing(fail)
    ongoing.start()
    await failing.wait()
    with pytest.raises(LookupError, match="what it was looking for"):
        await ongoing.close()
    await ongoing.close()
