"""Metrics of what the base's engine holds: from the last reading of the engine, at every scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.registry.snapshot import Snapshot
from server.engine.residency import ResidencyCache, Resident
from server.gateway.metrics import NONE


class ResidencyCollector(Collector):
    """Nothing while the engine is not ready, or cannot say."""

    def __init__(
        self,
        cache: ResidencyCache,
        base: str,
        snapshot: Callable[[], Snapshot],
        label: Callable[[str], str],
    ):
        """`label` bounds how many adapters have series of their own (GatewayMetrics.label)."""
        self._cache = cache
        self._base = base
        self._snapshot = snapshot
        self._label = label

    def collect(self) -> Iterator[Metric]:
        resident = self._cache.current()
        if resident is None:
            return
        yield self._places(resident)
        slots = GaugeMetricFamily(
            "adapterctl_engine_slots",
            "Slots of the engine by state: used, free, pinned (of those used).",
            labels=["base", "state"],
        )
        used = sum(slot is not None for slot in resident.slots)
        slots.add_metric([self._base, "used"], used)
        slots.add_metric([self._base, "free"], len(resident.slots) - used)
        slots.add_metric([self._base, "pinned"], len(resident.pinned))
        yield slots
        yield from self._counters(resident)

    def _places(self, resident: Resident) -> Metric:
        snapshot = self._snapshot()
        counts: Counter[tuple[str, str]] = Counter()
        for where, digests in (("slot", resident.slots), ("cpu", resident.cpu)):
            for digest in digests:
                if digest is not None:
                    # Resident for every adapter that has it, once for each.
                    names = {adapter.name for adapter, _ in snapshot.holders(digest)} or {NONE}
                    counts.update((self._label(name), where) for name in names)
        places = GaugeMetricFamily(
            "adapterctl_adapter_resident",
            "Versions of the adapter in the engine's slots, and in its memory.",
            labels=["adapter", "where"],
        )
        for (adapter, where), count in sorted(counts.items()):
            places.add_metric([adapter, where], count)
        return places

    def _counters(self, resident: Resident) -> Iterator[Metric]:
        for name, help_text, value in (
            ("loads", "Adapters that the engine has read from disk.", resident.loads),
            ("evictions", "Adapters that had to leave the engine's memory.", resident.evictions),
            ("swaps", "Adapters that were copied from memory into a slot.", resident.swaps),
            (
                "prefetched",
                "Of the loads, those beside the engine's steps.",
                resident.prefetched,
            ),
            ("overlapped", "Of these, those that no step had to wait for.", resident.overlapped),
        ):
            counter = CounterMetricFamily(f"adapterctl_adapter_{name}", help_text, labels=["base"])
            counter.add_metric([self._base], value)
            yield counter
        for name, help_text, seconds in (
            ("load", "Seconds in which the engine read adapters from disk.", resident.load_seconds),
            ("swap", "Seconds in which it copied adapters into slots.", resident.swap_seconds),
        ):
            counter = CounterMetricFamily(
                f"adapterctl_adapter_{name}_seconds", help_text, labels=["base"]
            )
            counter.add_metric([self._base], seconds)
            yield counter
