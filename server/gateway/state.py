"""What every route of the gateway works with, made once and passed in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from adapters.models import BaseRecord
from adapters.registry.snapshot import Snapshot
from adapters.serving.stored import ServingDocuments
from server.engine.engines import Engine
from server.gateway.callers import Callers
from server.gateway.compositions import Compositions
from server.gateway.exposition import Exposition
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Observer
from server.gateway.picker_metrics import PickerMetrics
from server.gateway.placing import Placing
from server.gateway.quotas.quotas import Quotas
from server.gateway.settle import Answering
from server.gateway.stopping import Stopping
from server.gateway.target import Withdrawn, nothing_withdrawn
from server.gateway.tracing import Tracing
from server.settings import ServeSettings


@dataclass(slots=True)
class GatewayState:
    """`settings` are replaced when they are read again; nothing else changes.

    The serving base and its engine, the registry, lanes, metrics, and what versions bring.

    `observers` hear of every ended request that named something known. `withdrawn` says which
    splits of routes (by the route's id, version and lane) get no more requests, though the
    snapshot still has them. `keep_up` has the engines follow the newest snapshot; a comparison
    where nothing is new. `callers` knows whose requests they are, `quotas` what those may use.
    """

    settings: ServeSettings
    base: BaseRecord
    engine: Engine
    snapshot: Callable[[], Snapshot]
    compositions: Compositions
    metrics: GatewayMetrics
    documents: ServingDocuments
    placing: Placing
    lanes: Lanes
    keep_up: Callable[[], None]
    callers: Callers
    quotas: Quotas
    withdrawn: Withdrawn = nothing_withdrawn
    # By adapter and version.
    in_flight: Counter[Answering] = field(default_factory=Counter)
    observers: list[Observer] = field(default_factory=list)
    # None: the gateway's own metrics, and no engine's.
    exposition: Exposition | None = None
    # None: nobody sends requests to several servers by their metrics.
    picker: PickerMetrics | None = None
    stopping: Stopping = field(default_factory=Stopping)
    # None: no traces.
    tracing: Tracing | None = None

    def salts(self) -> bool:
        """Whether the engine's prefix cache is kept apart by tenant."""
        wanted = self.settings.tenant_cache_salt
        return self.callers.told_apart if wanted == "auto" else wanted == "always"
