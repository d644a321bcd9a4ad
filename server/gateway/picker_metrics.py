"""What an endpoint picker reads to send a request to one of several servers.

The Kubernetes Gateway API Inference Extension's model server protocol
(kubernetes-sigs/gateway-api-inference-extension, docs/proposals/003-model-server-protocol), by
vLLM's names, which are its defaults. One series each, for this server as a whole: what waits in the
gateway's queues waits, though vLLM never heard of it, and adapters have the names that clients say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.models import AdapterRecord, VersionRecord
from adapters.registry.snapshot import Snapshot
from server.engine.engines import Engine
from server.engine.residency import ResidencyCache
from server.engine.vllm_metrics import KV_CACHE, LORA, OLD_KV_CACHE, RUNNING, WAITING
from server.gateway.admission.doors import BASE, Doors
from server.gateway.admission.wiring import QueueState
from server.gateway.engine_metrics import EngineMetrics


class PickerMetrics(Collector):
    """From memory; an engine's own figures are those of its last reading."""

    def __init__(
        self,
        engine: Engine,
        snapshot: Callable[[], Snapshot],
        doors: Doors,
        engines: EngineMetrics,
        residency: ResidencyCache,
    ):
        self._engine = engine
        self._snapshot = snapshot
        self._doors = doors
        self._engines = engines
        self._residency = residency

    def text(self) -> bytes:
        """Made at once; engines are asked meanwhile, for the next time: pickers come back soon."""
        self._engines.refresh()
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        states = self._doors.states(tenants=0)
        inside = sum(one.waiting for one in self._engines.latest().values())
        queued = sum(state.queued for state in states.values())
        at_engines = sum(state.in_flight for state in states.values())
        yield _one(WAITING, "Requests that wait, in the gateway and in engines.", queued + inside)
        running = max(0, at_engines - inside)
        yield _one(RUNNING, "Requests that engines work on.", running)
        base = self._engines.latest().get(BASE)
        if base is not None and base.kv_cache is not None:
            text = "The used part of the base's KV cache, 0 to 1."
            yield _one(KV_CACHE, text, base.kv_cache)
            yield _one(OLD_KV_CACHE, f"As {KV_CACHE}.", base.kv_cache)
        slots = self._engine.status().slots
        if slots is not None:
            yield self._adapters(slots, states.get(BASE))

    def _adapters(self, slots: int, state: QueueState | None) -> Metric:
        resident = self._residency.current()
        held = set() if resident is None else {digest for digest in resident.slots if digest}
        waiting = set() if state is None else {digest for digest in state.waiting if digest}
        snapshot = self._snapshot()
        family = GaugeMetricFamily(
            LORA,
            "Adapters in slots, and those that requests wait for; the value is the time of this.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        labels = [str(slots), _listed(snapshot, held), _listed(snapshot, waiting - held)]
        family.add_metric(labels, time.time())
        return family


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _listed(snapshot: Snapshot, digests: Iterable[str]) -> str:
    held = (one for digest in digests for one in snapshot.holders(digest))
    # Sorted: every other order would be another series.
    return ",".join(sorted(name for adapter, version in held for name in _names(adapter, version)))


def _names(adapter: AdapterRecord, version: VersionRecord) -> Iterator[str]:
    """How a client may write the version: by its number, by tags, by the bare name."""
    yield f"{adapter.name}:{version.label}"
    for tag, number in adapter.tags.items():
        if number == version.number:
            yield f"{adapter.name}:{tag}"
            if tag == adapter.default_tag:
                yield adapter.name
