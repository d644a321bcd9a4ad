"""The real pool over scripted engines: each merged model's engine is one of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import EngineStartFailed
from server.engine.engines import EngineState, EngineStatus, unavailable
from server.engine.memory import MIB, MemoryPlan
from server.engine.merged import MergedModel
from server.engine.pool import EnginePool
from server.engine.transport import EngineAddress, EngineTransport
from server.settings import ServeSettings
from tests.server.gateway.scripted import ScriptedEngine

SIZE = 100 * MIB


class ScriptedMerged:
    """A merged engine that starts when the test lets it. Implements `MergedEngine`."""

    def __init__(self, place: ScriptedPlace, changed: Callable[[], None]):
        self._place = place
        self._changed = changed
        self._transport: EngineTransport | None = None
        self.state = EngineState.STARTING
        self.failure: EngineStartFailed | None = None
        self.retry_in = 0.0
        self.restarts = 0

    async def start(self) -> None:
        self._place.starts += 1
        await self._place.may_start.wait()
        if self._place.fails is not None:
            raise EngineStartFailed(self._place.fails)
        engine = self._place.engine
        await engine.start()
        self._transport = EngineTransport(EngineAddress.parse(f"unix:{engine.socket}"), 1)
        self._set(EngineState.READY)

    async def stop(self) -> None:
        self._set(EngineState.STOPPED)
        if self._transport is not None:
            await self._transport.close()
            await self._place.engine.stop()
        self._place.stopped.set()

    def transport(self) -> EngineTransport:
        if self._transport is None or self.state is not EngineState.READY:
            raise unavailable(self.state, "")
        return self._transport

    def noticed_dead(self) -> None:
        """What a supervisor does when the process has ended."""
        self._set(EngineState.DOWN)

    def status(self) -> EngineStatus:
        return EngineStatus(
            id="scripted",
            kind="supervised",
            base="tiny",
            state=self.state,
            address=f"unix:{self._place.engine.socket}",
            pid=None,
            restarts=0,
            since=datetime.now(UTC),
            slots=None,
            cpu_adapters=None,
            max_rank=None,
            detail="",
        )

    def _set(self, state: EngineState) -> None:
        self.state = state
        self._changed()


class ScriptedPlace:
    """What the test decides of one model's engine. Implements `PreparedEngine`."""

    def __init__(self, socket: Path):
        self.engine = ScriptedEngine(socket)
        self.plan = MemoryPlan(SIZE, 0, 0, 0)
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.fails: str | None = None
        self.starts = 0
        self.stopped = asyncio.Event()
        self.running: ScriptedMerged | None = None

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def make(self, changed: Callable[[], None]) -> ScriptedMerged:
        self.running = ScriptedMerged(self, changed)
        return self.running


class ScriptedPlaces:
    """One place for each model, whether or not anybody ever asks for it."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._places: dict[str, ScriptedPlace] = {}

    def of(self, digest: str) -> ScriptedPlace:
        place = self._places.get(digest)
        if place is None:
            socket = self._directory / f"merged-{len(self._places)}.sock"
            place = self._places[digest] = ScriptedPlace(socket)
        return place

    def _prepare(self, model: MergedModel) -> ScriptedPlace:
        return self._places[model.digest]

    def pool(self, settings: ServeSettings) -> EnginePool:
        """Room for four; `of` must have been called for what is started (it runs in a thread)."""
        return EnginePool(
            settings, self._prepare, limit=4 * SIZE, base=lambda: 0, grace=0.0, interval=0.02
        )
