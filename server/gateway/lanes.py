"""Holding an engine for one request: the base's own, or one that runs a merged model.

A version that both could answer is answered by whichever is ready; while its merged engine starts,
or has just died, that is the base's engine: the same version, so nobody sees a failure.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from weakref import WeakKeyDictionary

from adapters.errors import EngineUnavailable
from adapters.frozen import Lane
from server.engine.engines import Engine, EngineState, core_is_dead
from server.engine.merged import EngineHold, MergedModel, MergedState
from server.engine.pool import EnginePool
from server.engine.transport import EngineTransport
from server.gateway.admission.doors import Doors
from server.gateway.admission.wiring import Admission
from server.gateway.placing import BASE, Ways

MERGED = Lane.MERGED.value
# Seconds in which a pool notices that an engine of its own is dead, and how often to look.
_NOTICED_WITHIN = 2.0
_LOOK_AGAIN = 0.05
# Seconds in which an engine that says its core is dead ends by itself, and its supervisor sees it.
_ENDS_WITHIN = 15.0
# Seconds between two attempts to start a model's engine that nobody has to wait for.
_ENSURE_EVERY = 2.0
_LEAVING = frozenset({MergedState.DRAINING, MergedState.STOPPING})


class Hold:
    """An engine that answers one request: `lane` is base, hot or merged.

    `engine` names the engine for counts: `base`, or the digest of its merged model.
    """

    __slots__ = ("_release", "engine", "engine_model", "lane", "transport")

    def __init__(
        self,
        lane: str,
        engine: str,
        engine_model: str,
        transport: EngineTransport,
        release: Callable[[], None],
    ):
        self.lane = lane
        self.engine = engine
        self.engine_model = engine_model
        self.transport = transport
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """The request has left the engine; further calls change nothing."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Lanes:
    """Gives every request its engine, and knows how many each one has."""

    def __init__(
        self, engine: Engine, pool: EnginePool, *, wait: float, doors: Doors | None = None
    ):
        """`wait`: seconds that a request waits for a merged engine to be started. `doors`: their
        admissions; None: with limits of their own, and slots that nobody knows."""
        self.wait = wait
        self.doors = doors or Doors()
        self._engine = engine
        self._pool = pool
        # Connections to engines that answer, but only that their core is dead; until when.
        self._dying: WeakKeyDictionary[EngineTransport, float] = WeakKeyDictionary()
        self._in_flight: Counter[str] = Counter()
        self._ensured: dict[str, float] = {}

    def in_flight(self) -> Mapping[str, int]:
        """Requests by engine: `base`, or the digest of a merged model; none has no entry."""
        return self._in_flight

    def door(self, hold: Hold) -> Admission:
        """The admission of a hold's engine."""
        return self.doors.at(hold.engine, hold.transport)

    def still_there(self, hold: Hold) -> bool:
        """Whether the engine is the one that was held: for who waited at its door."""
        if hold.engine != BASE:
            return self._pool.ready(hold.engine)
        try:
            return self._base_transport() is hold.transport
        except EngineUnavailable:
            return False

    def at_once(self, ways: Ways, failed: Collection[str] = ()) -> Hold | None:
        """The engine that answers without anybody waiting; None: one has to be started for it.

        `failed` are lanes that took nothing of this request although they seemed ready: any
        other goes first. Raises EngineUnavailable where no start would help.
        """
        merged = ways.merged
        if merged is None:
            return self._shared(ways)
        if ways.lane != MERGED:
            return self._hot_first(ways, merged, failed)
        if MERGED not in failed and (hold := self._ready(merged)) is not None:
            return hold
        if ways.shared is None or ways.lane_of_shared in failed:
            return None
        self._ensure(merged)
        try:
            return self._shared(ways)
        except EngineUnavailable:
            return None  # Neither is ready: the one it belongs to is waited for.

    def _hot_first(self, ways: Ways, merged: MergedModel, failed: Collection[str]) -> Hold:
        """Where the base's engine is down and a merged one still runs: the same version, let it."""
        try:
            if ways.lane_of_shared not in failed:
                return self._shared(ways)
        except EngineUnavailable:
            if (hold := self._ready(merged)) is None:
                raise
            return hold
        return self._ready(merged) or self._shared(ways)

    async def started(self, ways: Ways, *, wait: float, failed: Collection[str] = ()) -> Hold:
        """The merged engine, awaited at most `wait` seconds where `at_once` had nothing.

        Raises EngineUnavailable with why, and when to come back.
        """
        pool, model = self._pool, ways.merged
        assert model is not None
        clock = asyncio.get_running_loop().time
        until = clock() + wait
        noticed = clock() + min(wait, _NOTICED_WITHIN)
        while MERGED in failed and pool.ready(model.digest) and clock() < noticed:
            await asyncio.sleep(_LOOK_AGAIN)
        return self._merged(model, await pool.lease(model, wait=max(0.0, until - clock())))

    def stands_in(self, ways: Ways, lane: str) -> bool:
        """Whether another engine than that of `lane` would answer now."""
        if lane == MERGED:
            return ways.shared is not None and self._engine.status().state is EngineState.READY
        return ways.merged is not None and self._pool.ready(ways.merged.digest)

    def dying(self, transport: EngineTransport) -> None:
        """The engine behind it has said that its core is dead: nobody else is sent there.

        Whoever was told so may have killed it, and does not get another try.
        """
        self._dying[transport] = asyncio.get_running_loop().time() + _ENDS_WITHIN

    async def back(self, *, wait: float, dead: EngineTransport | None = None) -> None:
        """The base's engine after a failure: returns when it answers again.

        `dead` is what took nothing of a request although it seemed ready. Raises EngineUnavailable
        after `wait` seconds, and at once while it starts for the first time: who asks then is told
        to come back, since a first start may take minutes or fail for good.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            unnoticed = clock() - began < _NOTICED_WITHIN
            try:
                if self._base_transport() is not dead or not unnoticed:
                    return
            except EngineUnavailable:
                status = self._engine.status()
                comes_back = status.again or status.state is EngineState.READY
                if not comes_back or clock() - began >= wait:
                    raise
            await asyncio.sleep(_LOOK_AGAIN)

    def hold_now(self, ways: Ways) -> Hold | None:
        """The engine of the lane it belongs to, if ready; never waits, never starts one."""
        if ways.lane == MERGED:
            return None if ways.merged is None else self._ready(ways.merged)
        try:
            return self._shared(ways)
        except EngineUnavailable:
            return None

    def _shared(self, ways: Ways) -> Hold:
        assert ways.shared is not None
        transport = self._base_transport()
        return self._counted(ways.lane_of_shared, BASE, ways.shared, transport, lambda: None)

    def _ensure(self, model: MergedModel) -> None:
        """Have it started, but not for each of a thousand requests that the hot lane answers."""
        now = time.monotonic()
        if now - self._ensured.get(model.digest, -math.inf) < _ENSURE_EVERY:
            return
        self._ensured[model.digest] = now
        # This request may be of an older snapshot: what a newer one lets go of is not called back.
        for status in self._pool.statuses():
            if status.model == model.digest and status.state in _LEAVING:
                return
        self._pool.ensure(model)

    def _base_transport(self) -> EngineTransport:
        transport = self._engine.transport()
        if self._dying.get(transport, 0.0) > asyncio.get_running_loop().time():
            raise core_is_dead()
        return transport

    def _ready(self, model: MergedModel) -> Hold | None:
        held = self._pool.try_hold(model.digest)
        if held is None:
            return None
        try:
            return self._merged(model, held)
        except EngineUnavailable:
            return None

    def _merged(self, model: MergedModel, held: EngineHold) -> Hold:
        try:
            transport = held.transport()
        except BaseException:
            held.release()
            raise
        return self._counted(MERGED, model.digest, held.engine_model, transport, held.release)

    def _counted(
        self,
        lane: str,
        engine: str,
        engine_model: str,
        transport: EngineTransport,
        release: Callable[[], None],
    ) -> Hold:
        self._in_flight[engine] += 1

        def done() -> None:
            self._in_flight[engine] -= 1
            if self._in_flight[engine] == 0:
                del self._in_flight[engine]
            release()

        return Hold(lane, engine, engine_model, transport, done)
