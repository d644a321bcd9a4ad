"""A pool whose engines are small processes in vLLM's place."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from server.engine.capacity import NO_ADAPTERS, Capacity
from server.engine.command import EngineCommand
from server.engine.memory import MIB, MemoryPlan
from server.engine.merged import MergedModel, MergedState, MergedStatus
from server.engine.pool import EnginePool
from server.engine.supervisor import SupervisedEngine
from server.settings import ServeSettings

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")
# What each small engine is taken to need, and the base's.
SIZE = 100 * MIB
BASE = 50 * MIB


def model(letter: str) -> MergedModel:
    digest = f"sha256:{ord(letter):064x}"
    return MergedModel(digest=digest, path=Path("models", letter), name=letter, base="b")


class SmallEngines:
    """Makes the pool's engines; `modes` says how each model's next start goes."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.modes: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        # Models that gc would keep, and how many starts were tried.
        self.held: list[str] = []
        self.available: Callable[[], int] | None = None
        self.tried: list[str] = []

    def prepare(self, wanted: MergedModel) -> SmallPrepared:
        return SmallPrepared(self, wanted)

    def pool(
        self, *, limit: int = BASE + 2 * SIZE, grace: float = 0.0, **values: object
    ) -> EnginePool:
        given: dict[str, object] = {
            "store": self.directory, "base": "b", "start_timeout": 10, "stop_timeout": 0.5,
            "merged_idle": 0, **values,
        }  # fmt: skip
        self.settings = ServeSettings.model_validate(given)
        return EnginePool(
            self.settings,
            self.prepare,
            limit=limit,
            base=lambda: BASE,
            available=self.available,
            grace=grace,
            interval=0.05,
        )


class SmallPrepared:
    def __init__(self, engines: SmallEngines, wanted: MergedModel):
        self._engines = engines
        self._model = wanted
        self.plan = MemoryPlan(engines.sizes.get(wanted.name, SIZE), 0, 0, 0)

    def hold(self) -> None:
        self._engines.held.append(self._model.name)

    def release(self) -> None:
        self._engines.held.remove(self._model.name)

    def make(self, changed: Callable[[], None]) -> SupervisedEngine:
        name, directory = self._model.name, self._engines.directory
        self._engines.tried.append(name)

        def command(_: Capacity, engine_id: str) -> EngineCommand:
            socket, log = directory / f"{name}.sock", directory / f"{name}.log"
            mode = self._engines.modes.get(name, "serve")
            argv = (sys.executable, "-S", str(SMALL_ENGINE), str(socket), mode)
            return EngineCommand(argv, dict(os.environ), socket, log)

        return SupervisedEngine(
            self._engines.settings, "b", lambda: NO_ADAPTERS, command, changed=changed
        )


def has(pool: EnginePool, letter: str, state: MergedState) -> bool:
    return any(one.name == letter and one.state is state for one in pool.statuses())


def status(pool: EnginePool, letter: str) -> MergedStatus:
    return next(one for one in pool.statuses() if one.name == letter)


def pid_of(pool: EnginePool, letter: str) -> int:
    pid = status(pool, letter).pid
    assert pid is not None
    return pid


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
