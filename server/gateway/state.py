"""What every route of the gateway works with, made once and passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from adapters.models import BaseRecord
from adapters.registry.snapshot import Snapshot
from adapters.serving.stored import ServingDocuments
from server.engine.engines import Engine
from server.gateway.compositions import Compositions
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Mirror, Observer
from server.gateway.placing import Placing
from server.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class GatewayState:
    """The serving base and its engine, the registry, lanes, metrics, and what versions bring.

    `observers` hear of every ended request that named something known; `mirrors` get what is
    needed to send a copy of an answered one, where its reference has a route.
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
    # Has the engines follow the newest snapshot; a comparison where nothing is new.
    keep_up: Callable[[], None]
    observers: list[Observer] = field(default_factory=list)
    mirrors: list[Mirror] = field(default_factory=list)
