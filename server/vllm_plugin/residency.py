"""Which adapters vLLM's worker holds, what holding them cost so far, and pins that hold.

vLLM mixes `ResidentAdapters` into its worker (`--worker-extension-cls`) and calls it by
`collective_rpc`; `endpoints.py` makes HTTP routes of that. Everything hangs on the worker's own
manager object, nothing on vLLM's classes: another worker of the process is not touched.

vLLM 0.32 has two LRU caches: adapters in memory (`_registered_adapters`) and those in the slots
that a batch computes with (`_active_adapters`). Both can pin. But a batch that has as many other
adapters as there are slots, as one may that began before the pin (`reserving.py` keeps the
scheduler from making more), ends a stock engine: activating one of the batch evicts another of the
batch, whose rows then have no slot. Here a pin gives way to such a batch, and comes back with the
first one that leaves it room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, cast

from vllm.lora.request import LoRARequest

from server.vllm_plugin import loading
from server.vllm_plugin.ahead import Ahead

logger = logging.getLogger("vllm.adapterctl.residency")

# Names whose loads are counted one by one.
_COUNTED_NAMES = 10_000


class ResidentAdapters:
    """Methods that vLLM's worker gets; `self` is the worker."""

    def adapterctl_watch(self) -> bool:
        """Begin to count, before the first request; False where the engine has no adapters."""
        worker: Any = self
        manager = getattr(worker.model_runner, "lora_manager", None)
        if manager is None:
            return False
        if not hasattr(worker, "adapterctl_watched"):
            loading.install(manager)
            worker.adapterctl_watched = Watch(manager)
        return True

    def adapterctl_listen(self) -> str:
        """Begin to read adapters ahead; the socket that takes orders, "" where none can be."""
        try:
            return cast(Watch, cast(Any, self).adapterctl_watched).read_ahead()
        except OSError as error:
            logger.warning("adapters are not read ahead: %s", error)
            return ""

    def adapterctl_residency(self) -> dict[str, Any]:
        """What the caches hold and have done since `adapterctl_watch`; plain JSON."""
        return cast(Watch, cast(Any, self).adapterctl_watched).residency()

    def adapterctl_pin(self, adapters: Sequence[tuple[str, int, str]]) -> list[str]:
        """Pin exactly these (name, vLLM's id, path); returns the names that are pinned now."""
        requests = [LoRARequest(name, number, path) for name, number, path in adapters]
        return cast(Watch, cast(Any, self).adapterctl_watched).pin(requests)


class Watch:
    """Counts loads and evictions of one manager, and keeps its pins."""

    def __init__(self, manager: Any):
        """`manager`: an LRUCacheWorkerLoRAManager that has no adapters yet."""
        self._manager = manager
        self._models = manager._adapter_manager
        self._names: dict[int, str] = {}
        self._pins: dict[int, LoRARequest] = {}
        self._loads: Counter[str] = Counter()
        self._total_loads = 0
        self._load_seconds = 0.0
        self._evictions = 0
        self._swaps = 0
        self._swap_seconds = 0.0
        self._prefetched = 0
        self._overlapped = 0
        # Both threads count.
        self._counting = threading.Lock()
        self._ahead: Ahead | None = None
        self._read = manager._load_adapter
        manager._load_adapter = self._load
        manager._apply_adapters = self._around_pins(manager._apply_adapters)
        self._models.remove_oldest_adapter = self._counting_evictions(
            self._models.remove_oldest_adapter
        )
        self._models.activate_adapter = self._counting_swaps(self._models.activate_adapter)

    def read_ahead(self) -> str:
        """Read in a thread what the socket, whose path is returned, orders. Raises OSError."""
        registered = self._models._registered_adapters
        self._ahead = ahead = Ahead(self._read, registered.__contains__, self._count_ahead)
        address = ahead.listen()
        deactivate = registered.deactivate_fn

        def gone(number: int) -> object:
            ahead.gone(number)
            return deactivate(number)

        registered.deactivate_fn = gone
        return address

    def residency(self) -> dict[str, Any]:
        """Names by slot (None: free), in memory (least recently used first), pinned; the counts."""
        registered = list(self._models._registered_adapters.order)
        self._names = {number: self._names.get(number, "") for number in registered}
        active = self._models._active_adapters
        ready = () if self._ahead is None else self._ahead.ready().values()
        return {
            "slots": [
                None if number is None else self._names.get(number, "")
                for number in self._models.lora_index_to_id
            ],
            "cpu": [*self._names.values(), *ready],
            "cpu_total": int(self._models.capacity),
            "pinned": [one.lora_name for number, one in self._pins.items() if number in active],
            "loads": self._total_loads,
            "load_seconds": self._load_seconds,
            "evictions": self._evictions,
            "prefetched": self._prefetched,
            "overlapped": self._overlapped,
            "swaps": self._swaps,
            "swap_seconds": self._swap_seconds,
            "loaded": dict(self._loads),
        }

    def pin(self, requests: Iterable[LoRARequest]) -> list[str]:
        """Have exactly these in slots from now on; those beyond all slots but one are left out."""
        slots = int(self._models.lora_slots)
        wanted = {one.lora_int_id: one for one in list(requests)[: slots - 1]}
        for number in self._pins.keys() - wanted.keys():
            self._let_go(number)
        self._pins = wanted
        self._keep(frozenset())
        return [one.lora_name for one in wanted.values()]

    def _let_go(self, number: int) -> None:
        # vLLM pins for good: what it has to let go is only in the set of its cache.
        self._models._active_adapters.pinned_items.discard(number)
        self._models._registered_adapters.pinned_items.discard(number)

    def _around_pins(
        self, original: Callable[[Collection[Any]], None]
    ) -> Callable[[Collection[Any]], None]:
        """WorkerLoRAManager._apply_adapters, which puts a batch's adapters into slots."""

        def apply(requests: Collection[Any]) -> None:
            if not self._pins:
                original(requests)
            else:
                wanted = frozenset(one.lora_int_id for one in requests if one)
                self._make_room(wanted)
                original(requests)
                self._keep(wanted)
            self._adopt()

        return apply

    def _adopt(self) -> None:
        """What was read ahead joins the cache where that has room; nobody has to leave for it."""
        if self._ahead is None or len(self._models) >= self._models.capacity:
            return
        for number, name in self._ahead.ready().items():
            taken = self._ahead.take(number)
            if taken is not None and len(self._models) < self._models.capacity:
                self._names[number] = name
                self._models.add_adapter(taken[0])
                self._overlapped += 1

    def _make_room(self, wanted: frozenset[int]) -> None:
        """Let what is evicted for this batch be neither of the batch nor, if possible, pinned."""
        registered, active = self._models._registered_adapters, self._models._active_adapters
        for number in wanted:
            registered.touch(number)
            active.touch(number)
        idle = [number for number in self._pins if number not in wanted]
        for cache, places in ((active, self._models.lora_slots), (registered, registered.capacity)):
            for number in idle[max(0, int(places) - len(wanted)) :]:
                cache.pinned_items.discard(number)

    def _keep(self, wanted: frozenset[int]) -> None:
        """Put back and pin what the batch leaves room for; afterwards, so that none of it goes."""
        room = int(self._models.lora_slots) - len(wanted)
        idle = [number for number in self._pins if number not in wanted][:room]
        for number in (*(wanted & self._pins.keys()), *idle):
            if number in self._models._active_adapters.pinned_items:
                continue
            try:
                self._manager.add_adapter(self._pins[number])
                self._models.pin_adapter(number)
            # In the middle of a step, which must go on whatever is wrong with one adapter.
            except Exception as error:  # noqa: BLE001
                logger.warning("%s is not pinned: %s", self._pins.pop(number).lora_name, error)

    def _load(self, request: Any) -> Any:
        """WorkerLoRAManager._load_adapter, which takes over what was read ahead."""
        taken = None if self._ahead is None else self._ahead.take(request.lora_int_id)
        if taken is not None:
            adapter, at_once = taken
            self._overlapped += at_once
        else:
            began = time.perf_counter()
            adapter = self._read(request)
            self._count(request.lora_name, time.perf_counter() - began)
        self._names[request.lora_int_id] = request.lora_name
        return adapter

    def _count(self, name: str, seconds: float) -> None:
        with self._counting:
            self._load_seconds += seconds
            self._total_loads += 1
            if name in self._loads or len(self._loads) < _COUNTED_NAMES:
                self._loads[name] += 1

    def _count_ahead(self, name: str, seconds: float) -> None:
        self._count(name, seconds)
        self._prefetched += 1

    def _counting_evictions(self, original: Callable[[], bool]) -> Callable[[], bool]:
        def remove_oldest() -> bool:
            removed = original()
            self._evictions += removed
            return removed

        return remove_oldest

    def _counting_swaps(self, original: Callable[[int], bool]) -> Callable[[int], bool]:
        def activate(number: int) -> bool:
            began = time.perf_counter()
            changed = original(number)
            if changed:
                self._swaps += 1
                self._swap_seconds += time.perf_counter() - began
            return changed

        return activate
