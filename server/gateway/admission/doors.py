"""One admission for each engine: the base's, and those that run merged models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.gateway.admission.limits import Limits
from server.gateway.admission.wiring import Admission, QueueState

# How Hold.engine names the base's engine.
BASE = "base"
# Merged engines whose counters are kept though nothing is at them.
_MOST_IDLE = 64


def _nothing_pinned() -> frozenset[str]:
    return frozenset()


class Doors:
    """Every engine's admission, made when its first request comes."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        slots: Callable[[], int | None] = lambda: None,
        pinned: Callable[[], frozenset[str]] = _nothing_pinned,
        prefetch: Callable[[str], None] = lambda _: None,
        resident: Callable[[str], bool] = lambda _: False,
    ):
        """Of the base's engine: `slots` and the digests `pinned` to them as they are now,
        `prefetch` and `resident` as Admission takes them."""
        self.limits = limits or Limits()
        # Told of every wait: by a metric, once there is one.
        self.waited: Callable[[str, float], None] = lambda engine, seconds: None
        self._slots = slots
        self._pinned = pinned
        self._prefetch = prefetch
        self._resident = resident
        self._doors: dict[str, Admission] = {}

    def at(self, engine: str, life: object) -> Admission:
        """The admission of `engine` (as Hold names it); `life`: another object after each start."""
        door = self._doors.get(engine)
        if door is None:
            self._forget()
            door = self._doors[engine] = self._made(engine)
        if engine == BASE:
            door.alive(life, slots=self._slots(), pinned=self._pinned())
        else:
            door.alive(life, slots=None, pinned=frozenset())
        return door

    def limit(self, limits: Limits) -> None:
        """Others from now on; what has been let in stays."""
        self.limits = limits
        for door in self._doors.values():
            door.core.limits = limits
            door.core.slots.patience = limits.patience

    def states(self, *, tenants: int = 20) -> Mapping[str, QueueState]:
        """By engine, the base's first; none that never had a request."""
        found = sorted(self._doors.items(), key=lambda item: (item[0] != BASE, item[0]))
        return {engine: door.state(tenants=tenants) for engine, door in found}

    def _made(self, engine: str) -> Admission:
        def waited(seconds: float) -> None:
            self.waited(engine, seconds)

        if engine != BASE:
            return Admission(self.limits, slots=None, waited=waited)
        return Admission(
            self.limits,
            slots=self._slots(),
            prefetch=self._prefetch,
            resident=self._resident,
            waited=waited,
        )

    def _forget(self) -> None:
        if len(self._doors) <= _MOST_IDLE:
            return
        for engine in [one for one, door in self._doors.items() if door.idle and one != BASE]:
            del self._doors[engine]
