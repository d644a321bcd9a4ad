"""What the admin API asks of the running server, answered by its parts. See LaneOperations."""

from __future__ import annotations

from collections.abc import Callable

from adapters.errors import UsageError
from adapters.frozen import Lane
from server.engine.merged import MergedState, MergedStatus, merged_id
from server.engine.pool import EnginePool
from server.gateway import lane_models
from server.gateway.admission.shown import queue_shown
from server.gateway.lane_models import (
    Advice,
    MergedStateName,
    Prefetched,
    ResidencyDocument,
    TopDocument,
)
from server.gateway.lanes import MERGED
from server.gateway.route_status import RouteStatus
from server.gateway.state import GatewayState
from server.gateway.top import Sight

_NAMES: dict[MergedState, MergedStateName] = {
    MergedState.STOPPED: "idle",
    MergedState.QUEUED: "starting",
    MergedState.STARTING: "starting",
    MergedState.READY: "ready",
    # Ended by itself, and about to be started again.
    MergedState.DOWN: "failed",
    MergedState.DRAINING: "stopping",
    MergedState.STOPPING: "stopping",
    MergedState.FAILED: "failed",
}


class RunningLanes:
    """Implements `LaneOperations`."""

    def __init__(
        self,
        state: GatewayState,
        pool: EnginePool,
        sight: Sight,
        route_status: Callable[[int], RouteStatus],
    ):
        self._route_status = route_status
        self._state = state
        self._pool = pool
        self._sight = sight

    def top(self, window: float = 60.0, rows: int = 50) -> TopDocument:
        states = self._state.lanes.doors.states()
        queues = tuple(queue_shown(engine, state) for engine, state in states.items())
        return self._sight.top(window, rows).model_copy(update={"queues": queues})

    def advice(self) -> list[Advice]:
        return self._sight.advice()

    def merged(self) -> list[lane_models.MergedState]:
        self._state.keep_up()
        return merged_states(self._pool)

    async def prefetch(self, reference: str) -> Prefetched:
        self._state.keep_up()
        resolved = self._state.snapshot().resolve(reference)
        version, adapter = resolved.version, resolved.adapter
        if version is None or adapter is None:
            raise UsageError(
                f"'{reference}' is a base: there is nothing to load besides its engine"
            )
        ways = self._state.placing.of_version(reference, adapter, version, None)
        if ways.lane != MERGED or ways.merged is None:
            return await self._sight.prefetch(version)
        model = ways.merged
        self._pool.ensure(model)
        found = (one for one in merged_states(self._pool) if one.digest == model.digest)
        return Prefetched(
            adapter=version.adapter,
            number=version.number,
            lane=Lane.MERGED,
            engine=next(found, None),
        )

    def route_status(self, route_id: int) -> RouteStatus:
        return self._route_status(route_id)

    def check_pin(self, reference: str) -> None:
        version = self._state.snapshot().resolve(reference).version
        if version is not None:
            self._sight.check_pin(version)

    async def residency(self) -> ResidencyDocument:
        return await self._sight.residency()


def merged_states(pool: EnginePool) -> list[lane_models.MergedState]:
    """The pool's engines as the admin API shows them."""
    return [_shown(status) for status in pool.statuses()]


def free_bytes(pool: EnginePool) -> int:
    """What merged engines may still take."""
    memory = pool.memory()
    return max(0, memory.limit - memory.base - memory.merged)


def _shown(status: MergedStatus) -> lane_models.MergedState:
    return lane_models.MergedState(
        id=merged_id(status.model),
        digest=status.model,
        name=status.name,
        base=status.base,
        state=_NAMES[status.state],
        detail="\n".join(part for part in (status.detail, status.log_tail) if part),
        retry_after=status.retry_in,
        memory_bytes=status.memory or None,
        in_flight=status.in_flight,
        idle=status.idle_seconds,
        pinned=status.pinned,
        pid=status.pid,
        restarts=status.restarts,
        since=status.since,
    )
