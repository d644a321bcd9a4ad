"""Counters that may go away: what is done meanwhile, and when they are asked again."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapters.errors import QuotaStorageDown
from server.gateway.quotas.counters import Counters, MemoryCounters
from server.gateway.quotas.windows import Window

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds after a failure for which no request waits for the storage again.
PAUSE = 1.0


class FailingCounters:
    """Implements Counters over one that may raise `faults`.

    While it is away this process counts alone (`closed` false), or QuotaStorageDown is raised.
    """

    def __init__(
        self,
        shared: Counters,
        faults: tuple[type[Exception], ...],
        *,
        closed: bool,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._shared = shared
        self._alone = MemoryCounters()
        self._faults = faults
        self._closed = closed
        self._clock = clock
        self._again = 0.0
        # Whether the last call reached it.
        self.up = True
        # Who entered while this process counted alone, to be let out there.
        self._entered_alone: set[tuple[str, str]] = set()

    async def look(self, name: str) -> Window:
        return await self._ask(lambda counters: counters.look(name))

    async def take(self, name: str, units: int, limit: int) -> bool:
        return await self._ask(lambda counters: counters.take(name, units, limit))

    async def charge(self, name: str, units: int) -> None:
        await self._ask(lambda counters: counters.charge(name, units))

    async def enter(self, name: str, member: str, limit: int) -> bool:
        async def enter(counters: Counters) -> bool:
            entered = await counters.enter(name, member, limit)
            if entered and counters is self._alone:
                self._entered_alone.add((name, member))
            return entered

        return await self._ask(enter)

    async def leave(self, name: str, member: str) -> None:
        if (name, member) in self._entered_alone:
            self._entered_alone.discard((name, member))
            await self._alone.leave(name, member)
            return
        try:
            await self._shared.leave(name, member)
        except self._faults as fault:
            # Its lease there ends by itself.
            self._away(fault)

    async def close(self) -> None:
        await self._shared.close()

    async def _ask(self, ask: Callable[[Counters], Awaitable[T]]) -> T:
        if self._clock() >= self._again:
            try:
                answer = await ask(self._shared)
            except self._faults as fault:
                self._away(fault)
            else:
                self._back()
                return answer
        if self._closed:
            raise QuotaStorageDown(
                "requests cannot be counted now and this server lets none pass uncounted; try "
                "again in a moment",
                retry_after=1,
            )
        return await ask(self._alone)

    def _away(self, fault: Exception) -> None:
        self._again = self._clock() + PAUSE
        if self.up:
            self.up = False
            then = "requests are refused" if self._closed else "this server counts alone"
            log.warning("the quota storage does not answer (%s); until it does, %s", fault, then)

    def _back(self) -> None:
        if not self.up:
            self.up = True
            log.warning("the quota storage answers again")
