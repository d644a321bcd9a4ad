"""The engines follow the registry: what a new snapshot names is kept or started, the rest drained.

Applied by whoever sees a new snapshot first, a request or the watching task: a request must not
ask the pool for a model of a snapshot that the pool was not told of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from adapters.errors import AdapterctlError, EngineUnavailable, RouteNotServed
from adapters.frozen import Lane
from adapters.lanes.choosing import deployed_lane
from adapters.models import AdapterRecord, VersionRecord
from adapters.registry.snapshot import Snapshot
from server.engine.engines import Engine
from server.engine.merged import MergedModel
from server.engine.pool import EnginePool
from server.engine.residency import Residency
from server.engine.transport import EngineTransport
from server.gateway.placing import Placing
from server.gateway.top import hot_pins

log = logging.getLogger(__name__)

INTERVAL = 0.2
# Seconds until pins that the engine did not take are tried again.
_PIN_RETRY = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a snapshot wants of engines: merged models, those always up, adapters kept in slots."""

    models: Mapping[str, MergedModel] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    in_slots: tuple[str, ...] = ()


def wanted_of(snapshot: Snapshot, placing: Placing, base_digest: str) -> Wanted:
    """Every merged model that a request may be sent to, and every pin."""
    models: dict[str, MergedModel] = {}
    pinned: set[str] = set()
    for adapter in snapshot.adapters.values():
        for version in _merged(adapter):
            model = placing.merged_model(adapter, version)
            if model is not None:
                models.setdefault(model.digest, model)
                deployment = adapter.deployments.get(version.number)
                if deployment is not None and deployment.pinned:
                    pinned.add(model.digest)
    return Wanted(models, frozenset(pinned), tuple(hot_pins(snapshot, base_digest)))


def _merged(adapter: AdapterRecord) -> Iterator[VersionRecord]:
    """The versions that are deployed in the merged lane, or get a route's part of it there."""
    numbers = {n for n, deployment in adapter.deployments.items() if deployment.lane is Lane.MERGED}
    routes = adapter.routes.values()
    parts = [(split.number, split.lane) for route in routes for split in route.splits]
    parts += [(shadow.number, shadow.lane) for route in routes for shadow in route.shadows]
    for number, lane in parts:
        version = adapter.versions.get(number)
        if version is not None and (lane or deployed_lane(adapter, version)) is Lane.MERGED:
            numbers.add(number)
    return (adapter.versions[number] for number in sorted(numbers))


class Reconciler:
    """Applies each new snapshot once; belongs to the event loop."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        placing: Placing,
        pool: EnginePool,
        engine: Engine,
        base_digest: str,
    ):
        self._snapshot = snapshot
        self._placing = placing
        self._pool = pool
        self._engine = engine
        self._base_digest = base_digest
        self._residency = Residency()
        self._seen: Snapshot | None = None
        self._wanted = Wanted()
        # The engine that has been told, and what.
        self._told: tuple[EngineTransport | None, tuple[str, ...]] = (None, ())
        self._tell_at = 0.0

    def keep_up(self) -> None:
        """Take in a new snapshot; nothing but a comparison where there is none."""
        snapshot = self._snapshot()
        if snapshot is self._seen:
            return
        first, self._seen = self._seen is None, snapshot
        old, self._wanted = (
            self._wanted,
            wanted_of(snapshot, self._placing, self._base_digest),
        )
        if old.models != self._wanted.models or old.pinned != self._wanted.pinned:
            self._pool.retain(self._wanted.models, self._wanted.pinned)
        for digest, model in self._wanted.models.items():
            # What was deployed before this server began waits for its first request.
            if digest not in old.models and not first:
                self._pool.ensure(model)

    async def run(self) -> None:
        """Keep up until cancelled, also with the pins that an engine forgets when it restarts."""
        while True:
            try:
                self.keep_up()
                await self._tell_pins()
            except AdapterctlError as error:
                log.warning("%s", error.message)
            except Exception:
                # A mistake here must not end the following for good.
                log.exception("a new snapshot could not be applied")
            await asyncio.sleep(INTERVAL)

    async def _tell_pins(self) -> None:
        pins = self._wanted.in_slots
        loop = asyncio.get_running_loop()
        if (not pins and not self._told[1]) or loop.time() < self._tell_at:
            return
        try:
            transport = self._engine.transport()
        except EngineUnavailable:
            return
        if self._told == (transport, pins):
            return
        self._tell_at = loop.time() + _PIN_RETRY
        try:
            result = await self._residency.apply_pins(transport, pins)
        except RouteNotServed as error:
            self._told = (transport, pins)  # That engine never will.
            log.warning("%s", error.message)
            return
        self._tell_at = 0.0
        self._told = (transport, pins)
        for digest, why in result.refused.items():
            log.warning("%s is not pinned: %s", digest, why)
