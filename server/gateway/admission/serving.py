"""The doors of a running server: limits by its settings, slots and pins by its engine."""

from __future__ import annotations

from collections.abc import Callable

from adapters.bases.engine_limits import on_cpu
from adapters.models import BaseRecord
from adapters.registry.snapshot import Snapshot
from server.engine.command import worker_threads
from server.engine.engines import Engine
from server.engine.residency import ResidencyCache, Resident
from server.gateway.admission.doors import Doors
from server.gateway.admission.limits import Limits, places_for, prompt_tokens_for
from server.settings import ServeSettings

# The digests that an engine is to keep in slots, by what a snapshot says of a base (its digest).
Pins = Callable[[Snapshot, str], list[str]]


def limits_of(settings: ServeSettings) -> Limits:
    """What engines are given at once, and what waits."""
    ours = settings.engine_url is None and on_cpu()
    threads = worker_threads() if ours else None
    return Limits(
        places=settings.max_in_flight or places_for(threads),
        prompt_tokens=settings.prefill_tokens or prompt_tokens_for(threads),
        queued=settings.queue_limit,
        queued_per_tenant=settings.queue_limit_per_tenant,
        timeout=settings.queue_timeout,
        patience=settings.slot_patience,
    )


def serving_doors(
    settings: ServeSettings,
    base: BaseRecord,
    engine: Engine,
    snapshot: Callable[[], Snapshot],
    pins: Pins,
    residency: ResidencyCache,
    prefetch: Callable[[str], None],
) -> Doors:
    """Doors that follow the engine of `base`: asked at every request, so from memory only."""

    def slots() -> int | None:
        capacity = engine.capacity
        return None if capacity is None else capacity.slots

    return Doors(
        limits_of(settings),
        slots=slots,
        pinned=_Pinned(snapshot, base.digest, pins).current,
        prefetch=prefetch,
        resident=_InMemory(residency).has,
    )


class _Pinned:
    """The pins of the newest snapshot, worked out once for each."""

    def __init__(self, snapshot: Callable[[], Snapshot], base_digest: str, pins: Pins):
        self._snapshot = snapshot
        self._base_digest = base_digest
        self._pins = pins
        self._of: Snapshot | None = None
        self._found: frozenset[str] = frozenset()

    def current(self) -> frozenset[str]:
        """The digests."""
        snapshot = self._snapshot()
        if snapshot is not self._of:
            self._of = snapshot
            self._found = frozenset(self._pins(snapshot, self._base_digest))
        return self._found


class _InMemory:
    """Whether the engine holds an adapter, by the last reading of it; a guess, for hints only."""

    def __init__(self, residency: ResidencyCache):
        self._residency = residency
        self._of: Resident | None = None
        self._found: frozenset[str] = frozenset()

    def has(self, digest: str) -> bool:
        """In a slot or in its memory."""
        resident = self._residency.current()
        if resident is None:
            return False
        if resident is not self._of:
            self._of = resident
            self._found = frozenset(resident.cpu)
        return digest in self._found
