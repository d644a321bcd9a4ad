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
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Observer
from server.gateway.placing import Placing
from server.gateway.settle import Answering
from server.gateway.target import Withdrawn, nothing_withdrawn
from server.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class GatewayState:
    """The serving base and its engine, the registry, lanes, metrics, and what versions bring.

    `observers` hear of every ended request that named something known. `withdrawn` says which
    splits of routes (by the route's id, version and lane) get no more requests, though the
    snapshot still has them. `keep_up` has the engines follow the newest snapshot; a comparison
    where nothing is new. `callers` knows whose requests they are.
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
    withdrawn: Withdrawn = nothing_withdrawn
    # By adapter and version.
    in_flight: Counter[Answering] = field(default_factory=Counter)
    observers: list[Observer] = field(default_factory=list)

    def salts(self) -> bool:
        """Whether the engine's prefix cache is kept apart by tenant."""
        wanted = self.settings.tenant_cache_salt
        return self.callers.told_apart if wanted == "auto" else wanted == "always"
