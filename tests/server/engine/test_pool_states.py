"""Whatever happens in whatever order: the planned memory stays within the limit, no count leaks.

The engines are objects that start, fail, die and come back when they are told to; they say so
where two that run together need more than there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import server.engine.merged as merged_module
from adapters.errors import AdapterctlError, EngineStartFailed, EngineUnavailable
from server.engine.engines import EngineState, EngineStatus
from server.engine.memory import MemoryPlan
from server.engine.merged import EngineHold, MergedModel
from server.engine.pool import EnginePool
from server.engine.transport import EngineTransport
from server.settings import ServeSettings
from tests.server.engine.small_pool import model

LIMIT, BASE, PLACES = 6, 1, 3
SIZES = {"a": 1, "b": 2, "c": 3, "d": 5, "e": 9}
MODELS = {letter: model(letter) for letter in SIZES}
LETTERS = st.sampled_from(sorted(SIZES))


class World:
    """What really runs: engines with memory, and models that are kept from gc."""

    def __init__(self) -> None:
        self.running: list[ToldEngine] = []
        self.held: list[str] = []

    def began(self, engine: ToldEngine) -> None:
        self.running.append(engine)
        assert engine.letter in self.held
        assert len(self.running) <= PLACES
        assert BASE + sum(SIZES[one.letter] for one in self.running) <= LIMIT
        assert len({one.letter for one in self.running}) == len(self.running)


class ToldEngine:
    """Implements `MergedEngine`."""

    def __init__(self, world: World, letter: str, changed: Callable[[], None]):
        self.world, self.letter, self._changed = world, letter, changed
        self.state = EngineState.STARTING
        self.failure: EngineStartFailed | None = None
        self.retry_in = 0.0
        self.restarts = 0
        self.outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.world.began(self)
        try:
            if not await self.outcome:
                raise EngineStartFailed("told to fail", log_tail="told")
        except BaseException:
            # What it started takes a moment to end.
            await asyncio.sleep(0.001)
            self.world.running.remove(self)
            raise
        self.set(EngineState.READY)

    async def stop(self) -> None:
        await asyncio.sleep(0.001)
        self.world.running.remove(self)
        self.state = EngineState.STOPPED

    def set(self, state: EngineState) -> None:
        self.state = state
        self._changed()

    def transport(self) -> EngineTransport:
        raise EngineUnavailable("no transport", retry_after=1)

    def status(self) -> EngineStatus:
        raise AssertionError("asked of each member in its own test")


class ToldPrepared:
    def __init__(self, world: World, wanted: MergedModel):
        self._world, self._letter = world, wanted.name
        self.plan = MemoryPlan(SIZES[wanted.name], 0, 0, 0)

    def hold(self) -> None:
        self._world.held.append(self._letter)

    def release(self) -> None:
        if self._letter in self._world.held:
            self._world.held.remove(self._letter)

    def make(self, changed: Callable[[], None]) -> ToldEngine:
        return ToldEngine(self._world, self._letter, changed)


class PoolMachine(RuleBasedStateMachine):
    @initialize(idle=st.sampled_from([0, 0.004]), grace=st.sampled_from([0, 0.003]))
    def begin(self, idle: float, grace: float) -> None:
        self.runner = asyncio.Runner()
        self.world = World()
        self.leases: list[tuple[str, asyncio.Task[EngineHold]]] = []
        self.holds: list[tuple[str, EngineHold]] = []
        given = ServeSettings(
            store=Path("x"),
            base="b",
            merged_idle=idle,
            merged_engines=PLACES,
            merged_drain=0.02,
        )
        self.pool = EnginePool(
            given,
            lambda wanted: ToldPrepared(self.world, wanted),
            limit=LIMIT,
            base=lambda: BASE,
            grace=grace,
            interval=0.002,
        )

    def do(self, act: Callable[[], object]) -> None:
        """Act on the loop, then let what follows happen."""

        async def acted() -> None:
            act()
            await asyncio.sleep(0.001)

        self.runner.run(acted())
        self.collect()

    def collect(self) -> None:
        """What became of leases."""
        for letter, task in [one for one in self.leases if one[1].done()]:
            self.leases.remove((letter, task))
            if task.cancelled():
                continue
            error = task.exception()
            if error is None:
                self.holds.append((letter, task.result()))
            else:
                assert isinstance(error, AdapterctlError), error

    def running(self, letter: str) -> ToldEngine | None:
        return next((one for one in self.world.running if one.letter == letter), None)

    @rule(letter=LETTERS, wait=st.sampled_from([0.0, 0.005, 60.0]))
    def lease(self, letter: str, wait: float) -> None:
        self.do(
            lambda: self.leases.append(
                (letter, asyncio.create_task(self.pool.lease(MODELS[letter], wait=wait)))
            )
        )

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.leases:
            self.do(self.leases[which % len(self.leases)][1].cancel)

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if self.holds:
            self.do(self.holds.pop(which % len(self.holds))[1].release)

    @rule(letter=LETTERS)
    def try_hold(self, letter: str) -> None:
        def act() -> None:
            hold = self.pool.try_hold(MODELS[letter].digest)
            if hold is not None:
                self.holds.append((letter, hold))

        self.do(act)

    @rule(letter=LETTERS)
    def ensure(self, letter: str) -> None:
        self.do(lambda: self.pool.ensure(MODELS[letter]))

    @rule(letters=st.sets(LETTERS), pinned=st.sets(LETTERS, max_size=1))
    def retain(self, letters: set[str], pinned: set[str]) -> None:
        wanted = {MODELS[one].digest: MODELS[one] for one in letters}
        self.do(lambda: self.pool.retain(wanted, {MODELS[one].digest for one in pinned}))

    @rule(letter=LETTERS, well=st.booleans())
    def end_start(self, letter: str, well: bool) -> None:
        engine = self.running(letter)
        if engine is not None and not engine.outcome.done():
            engine.outcome.set_result(well)
            self.do(lambda: None)

    @rule(letter=LETTERS, fails=st.booleans())
    def kill(self, letter: str, fails: bool) -> None:
        engine = self.running(letter)
        if engine is not None and engine.state is EngineState.READY:
            engine.failure = EngineStartFailed("again") if fails else None
            self.do(lambda: engine.set(EngineState.DOWN))

    @rule(letter=LETTERS)
    def revive(self, letter: str) -> None:
        engine = self.running(letter)
        if engine is not None and engine.state is EngineState.DOWN:
            engine.failure = None
            self.do(lambda: engine.set(EngineState.READY))

    @rule()
    def let_time_pass(self) -> None:
        self.runner.run(asyncio.sleep(0.01))
        self.do(lambda: None)

    @invariant()
    def nothing_is_overcommitted(self) -> None:
        if not hasattr(self, "pool"):
            return
        memory = self.pool.memory()
        assert memory.merged + BASE <= LIMIT
        assert memory.engines <= PLACES
        assert memory.merged >= sum(SIZES[one.letter] for one in self.world.running)

    @invariant()
    def counts_are_true(self) -> None:
        if not hasattr(self, "pool"):
            return
        for member in self.pool._members.values():
            letter = member.model.name
            waiting = sum(name == letter for name, _ in self.leases)
            holds = sum(name == letter for name, _ in self.holds)
            assert member.waiting == waiting
            assert member.in_flight == holds

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return

        async def end() -> None:
            for _, task in self.leases:
                task.cancel()
            await asyncio.gather(*(task for _, task in self.leases), return_exceptions=True)
            self.collect()
            await self.pool.close()
            for _, hold in self.holds:
                hold.release()

        try:
            self.runner.run(end())
            assert self.world.running == []
            assert self.world.held == []
            assert self.pool.memory().merged == 0
            for member in self.pool._members.values():
                assert (member.in_flight, member.waiting) == (0, 0)
        finally:
            self.runner.close()


def test_no_order_of_events_overcommits_or_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_module, "FIRST_BACKOFF", 0.002)
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
