"""Where quotas are counted: in this process, or shared by several gateways (redis_counters.py)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Protocol

from limits.aio.storage import MemoryStorage

from server.gateway.quotas.windows import MINUTE, Window

# Whose counters are kept at most. Those of keys and tenants that were idle longest go first.
_MOST = 20_000
# No limit: what was used is charged whatever is left.
_ANY = 2**53


class Counters(Protocol):
    """Counters by name; every method may raise what its storage does where that is away."""

    async def look(self, name: str) -> Window:
        """What the last minute used."""

    async def take(self, name: str, units: int, limit: int) -> bool:
        """Counts `units` if no more than `limit` are used then; at once, whoever else counts."""

    async def charge(self, name: str, units: int) -> None:
        """Counts `units` in any case."""

    async def enter(self, name: str, member: str, limit: int) -> bool:
        """Adds a member if there are less than `limit`."""

    async def leave(self, name: str, member: str) -> None:
        """Takes a member out."""

    async def close(self) -> None:
        """Release what it holds."""


class MemoryCounters:
    """Of this process alone; gone when it ends. Implements Counters."""

    def __init__(self) -> None:
        # A storage for each name: one for all would look through everybody's at every request.
        self._storages: OrderedDict[str, MemoryStorage] = OrderedDict()
        self._inside: Counter[str] = Counter()

    async def look(self, name: str) -> Window:
        storage = self._storages.get(name)
        if storage is None:
            return Window()
        return Window(*await storage.get_sliding_window(name, MINUTE))

    async def take(self, name: str, units: int, limit: int) -> bool:
        storage = self._of(name)
        return await storage.acquire_sliding_window_entry(name, limit, MINUTE, units)

    async def charge(self, name: str, units: int) -> None:
        await self._of(name).acquire_sliding_window_entry(name, _ANY, MINUTE, units)

    async def enter(self, name: str, member: str, limit: int) -> bool:
        if self._inside[name] >= limit:
            return False
        self._inside[name] += 1
        return True

    async def leave(self, name: str, member: str) -> None:
        self._inside[name] -= 1
        if self._inside[name] <= 0:
            del self._inside[name]

    async def close(self) -> None:
        self._storages.clear()

    def _of(self, name: str) -> MemoryStorage:
        storage = self._storages.get(name)
        if storage is None:
            if len(self._storages) >= _MOST:
                self._storages.popitem(last=False)
            storage = self._storages[name] = MemoryStorage()
        self._storages.move_to_end(name)
        return storage
