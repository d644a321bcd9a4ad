"""Everything that follows routes at work: canaries, the scores of their answers, shadows.

The gateway makes one, lists `observe` among its observers, asks `withdrawn` before it sends a
request to a split, and runs it beside the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from adapters.frozen import Lane
from adapters.registry.snapshot import Snapshot
from server.gateway.canary import Canaries, RollBack
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.copying import Copying
from server.gateway.judging import Reason
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Observation, Observer
from server.gateway.route_status import RouteStatus
from server.gateway.scorer import Scorer
from server.gateway.shadow import ShadowLimits, Shadows
from server.settings import ServeSettings

log = logging.getLogger(__name__)


async def _lasting(work: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled: a fault of ours in one of the gateway's own requests ends only that one."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("copies or scores failed")
            await asyncio.sleep(1)


class Watching:
    """Canaries and shadows of one server. `tell` hears of every copy that a shadow was sent."""

    def __init__(
        self,
        settings: ServeSettings,
        snapshot: Callable[[], Snapshot],
        roll_back: RollBack,
        copying: Copying,
        metrics: GatewayMetrics,
        tell: Observer,
    ):
        own = CanaryMetrics(metrics)
        limits = ShadowLimits(
            settings.shadow_queue, settings.shadow_busiest, settings.shadow_deadline
        )
        self._own = own
        self._canaries = Canaries(snapshot, roll_back, own)
        self._shadows = Shadows(copying, own, limits, tell)
        self._scorer = Scorer(self._canaries, copying) if settings.canary_scores else None

    def observe(self, o: Observation) -> None:
        """One ended request; those without a route, and copies, tell nothing here."""
        self._canaries.observe(o)
        if self._scorer is not None:
            self._scorer.offer(o)
        self._shadows.observe(o)

    def quarantined(self, adapter: str) -> None:
        """A canary of the adapter is taken back because its version is quarantined."""
        self._own.rolled_back(adapter, Reason.QUARANTINED)

    def withdrawn(self, route_id: int, number: int, lane: Lane | None) -> bool:
        """Whether a split of a route, by its own lane, gets no requests any more."""
        return self._canaries.withdrawn(route_id, number, lane)

    def status(self, route_id: int) -> RouteStatus:
        """What was measured under a route since this server or the route began."""
        status = self._canaries.status(route_id)
        return status.model_copy(update={"shadows": self._shadows.status(route_id)})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scores and copies are sent while this is entered."""
        work = [self._shadows.run]
        if self._scorer is not None:
            work.append(self._scorer.run)
        tasks = [asyncio.create_task(_lasting(one)) for one in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._canaries.close()
