"""The engine's slots: which adapters are in flight, which want in, and who makes room for them.

More adapters in flight than slots would wait inside the engine, in its order and out of our sight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Holder:
    """An adapter that is in flight: since when without a break, and for whom."""

    since: float
    # Requests by tenant.
    tenants: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.tenants.total()


class Slots:
    """`count` None: nobody knows how many the engine has, and none is kept from anybody."""

    def __init__(self, count: int | None, *, patience: float):
        """`patience`: seconds that an adapter waits for a slot to become free by itself."""
        self.count = count
        self.pinned: frozenset[str] = frozenset()
        self.patience = patience
        self._held: dict[str, _Holder] = {}
        # Adapters that wait for a slot, and since when.
        self._wanted: dict[str, float] = {}
        # Adapters that get no further requests until they are gone, each for one that waits.
        self._leaving: dict[str, str] = {}

    @property
    def in_flight(self) -> int:
        """Distinct adapters at the engine."""
        return len(self._held)

    @property
    def wanted(self) -> dict[str, float]:
        """Adapters that wait for a slot, and since when."""
        return self._wanted

    @property
    def leaving(self) -> frozenset[str]:
        """Adapters that are to leave their slot to another."""
        return frozenset(self._leaving)

    def free(self) -> int:
        """Slots that nothing in flight holds and no pin keeps."""
        return max(0, self.usable() - len(self._held.keys() - self.pinned))

    def usable(self) -> int:
        """Slots that are not pinned; one is never, whatever is said."""
        assert self.count is not None
        return max(1, self.count - len(self.pinned))

    def __contains__(self, adapter: str) -> bool:
        """Whether it is in flight."""
        return adapter in self._held

    def holds(self, adapter: str) -> bool:
        """Whether it may go to the engine without taking anybody's slot."""
        return adapter in self._held or adapter in self.pinned

    def has_room(self, adapter: str, *, beside: int) -> bool:
        """Whether it may go without anybody's waiting for it: so many slots stay free then."""
        if adapter in self._leaving:
            return False
        return self.count is None or self.holds(adapter) or self.free() > beside

    def ask(
        self,
        adapter: str,
        now: float,
        *,
        keep: int,
        at_once: bool,
        may_go: Callable[[set[str]], bool],
    ) -> bool:
        """Whether a request to `adapter` may go now; if not, it is wanted from now on.

        `keep` slots are left free. `at_once`: room is made without waiting for it. `may_go` says
        of the tenants that an adapter is in flight for whether it may be made to leave for this.
        """
        if self.has_room(adapter, beside=keep):
            return True
        since = self._wanted.setdefault(adapter, now)
        if at_once or now - since >= self.patience:
            self._make_room(adapter, at_once=at_once, may_go=may_go)
        return False

    def take(self, adapter: str, tenant: str, now: float) -> None:
        """A request to it goes to the engine."""
        holder = self._held.get(adapter)
        if holder is None:
            holder = self._held[adapter] = _Holder(now)
        holder.tenants[tenant] += 1
        self.unwanted(adapter)

    def give_back(self, adapter: str, tenant: str) -> None:
        """A request to it has left the engine."""
        holder = self._held[adapter]
        holder.tenants[tenant] -= 1
        if holder.tenants[tenant] == 0:
            del holder.tenants[tenant]
        if not holder.tenants:
            del self._held[adapter]
            self._leaving.pop(adapter, None)

    def unwanted(self, adapter: str) -> None:
        """Nothing waits for it any more, or it has its slot: nobody has to leave for it."""
        if self._wanted.pop(adapter, None) is None:
            return
        for leaving in [one for one, wanted in self._leaving.items() if wanted == adapter]:
            del self._leaving[leaving]

    def next_patience(self) -> float | None:
        """When the patience of an adapter ends for which nobody leaves yet."""
        served = set(self._leaving.values())
        ends = [since + self.patience for one, since in self._wanted.items() if one not in served]
        return min(ends, default=None)

    def _make_room(
        self, adapter: str, *, at_once: bool, may_go: Callable[[set[str]], bool]
    ) -> None:
        if adapter in self._leaving.values():
            return
        candidates = [
            (holder.requests if at_once else 0, holder.since, name)
            for name, holder in self._held.items()
            if name not in self._leaving
            and name not in self.pinned
            and name != adapter
            and may_go(set(holder.tenants))
        ]
        if candidates:
            # In a hurry: the slot that is free soonest; else that of who had it longest.
            self._leaving[min(candidates)[2]] = adapter
