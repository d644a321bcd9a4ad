"""One merged model's engine as the pool sees it: what it is doing, who uses it, why it failed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from adapters.errors import AdapterctlError, EngineStartFailed, EngineUnavailable
from adapters.frozen import Frozen
from adapters.store.layout import digest_hex, engine_name
from server.engine.engines import EngineState, EngineStatus
from server.engine.memory import MemoryPlan
from server.engine.transport import EngineTransport

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
# Seconds, where it has not been started before: for Retry-After.
TYPICAL_START = 30.0


@dataclass(frozen=True, slots=True)
class MergedModel:
    """A merged model that can have an engine: `name` is for people, `path` its directory."""

    digest: str
    path: Path
    name: str
    base: str


def merged_id(model: str) -> str:
    """How people and metrics know the engine of a merged model, by the model's digest."""
    return f"merged-{digest_hex(model)[:12]}"


class MergedState(StrEnum):
    """What a merged engine is doing; `queued` waits for room, `failed` for its next attempt."""

    STOPPED = "stopped"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class MergedStatus(Frozen):
    """What people and metrics see of one merged model's engine. Memory is what was planned."""

    model: str
    name: str
    base: str
    state: MergedState
    since: datetime
    pinned: bool
    in_flight: int
    waiting: int
    # Bytes that count against the limit; 0 while it has no engine.
    memory: int
    pid: int | None
    address: str
    # Since the server started.
    starts: int
    failures: int
    restarts: int
    # Of the last start that succeeded.
    start_seconds: float | None
    idle_seconds: float | None
    # Why it is not served, if there is a reason: one sentence, and the log's last lines.
    detail: str
    log_tail: str
    retry_in: float | None


class MergedEngine(Protocol):
    """What the pool needs of an engine; `SupervisedEngine` is one."""

    @property
    def state(self) -> EngineState: ...
    @property
    def failure(self) -> EngineStartFailed | None: ...
    @property
    def retry_in(self) -> float: ...
    @property
    def restarts(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def transport(self) -> EngineTransport: ...
    def status(self) -> EngineStatus: ...


class PreparedEngine(Protocol):
    """A merged engine that only lacks room: its plan, and the lease on its model."""

    @property
    def plan(self) -> MemoryPlan: ...
    def hold(self) -> None:
        """Have gc keep the model; reads and writes the disk."""

    def make(self, changed: Callable[[], None]) -> MergedEngine:
        """The engine, not started; it calls `changed` after every change of its state."""

    def release(self) -> None:
        """Nothing of the engine is left: gc may take the model."""


class Member:
    """A model of the pool. Only the pool changes it; everything happens on one event loop."""

    def __init__(self, model: MergedModel, changed: Callable[[], None]):
        self.model = model
        self.state = MergedState.STOPPED
        self.since = datetime.now(UTC)
        # The same on a clock that nobody sets.
        self._since = time.monotonic()
        self.engine: MergedEngine | None = None
        # Counted against the limit from before the engine starts until nothing of it is left.
        self.plan: MemoryPlan | None = None
        self.prepared: PreparedEngine | None = None
        self.task: asyncio.Task[None] | None = None
        self.in_flight = 0
        self.waiting = 0
        self.pinned = False
        # Wanted by somebody who does not wait for it.
        self.ahead = False
        # Monotonic: when it is stopped whatever is in flight; None unless taken out of service.
        self.retire_at: float | None = None
        self.used = time.monotonic()
        self.problem: AdapterctlError | None = None
        self.backoff = FIRST_BACKOFF
        self.retry_at = 0.0
        self.starts = 0
        self.failures = 0
        self.start_seconds: float | None = None
        self._pool_changed = changed
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether a request can be sent to it now."""
        engine = self.engine
        return (
            self.state is MergedState.READY
            and engine is not None
            and engine.state is EngineState.READY
        )

    @property
    def retired(self) -> bool:
        return self.retire_at is not None

    @property
    def wished(self) -> bool:
        """Whether anybody would miss it if it were not started."""
        return not self.retired and (self.waiting > 0 or self.ahead or self.pinned)

    @property
    def unused(self) -> bool:
        return self.in_flight == 0 and self.waiting == 0

    def touch(self) -> None:
        """It is used now: idle time begins anew."""
        self.used = time.monotonic()

    def set(self, state: MergedState) -> None:
        if state is not self.state:
            self.state = state
            self.since = datetime.now(UTC)
            self._since = time.monotonic()
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for a change of this model, and of the pool."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()
        self._pool_changed()

    async def change(self, timeout: float) -> None:
        """Until something changes, at most `timeout` seconds."""
        event = self._changed
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return

    def fail(self, error: AdapterctlError) -> None:
        """A start failed: the next is not tried before the back-off is over."""
        self.problem = error
        self.failures += 1
        self.retry_at = time.monotonic() + self.backoff
        self.backoff = min(self.backoff * 2, LONGEST_BACKOFF)
        self.set(MergedState.FAILED)

    def started(self, seconds: float) -> None:
        """It is ready; earlier failures count no more."""
        self.problem = None
        self.backoff = FIRST_BACKOFF
        self.starts += 1
        self.start_seconds = seconds
        self.touch()
        self.set(MergedState.READY)

    def startable(self) -> bool:
        """Whether a start may be begun now."""
        if self.state is MergedState.FAILED:
            return time.monotonic() >= self.retry_at
        return self.state is MergedState.STOPPED

    def obstacle(self) -> EngineUnavailable | None:
        """Why waiting for it is in vain for now: its start failed, and was not tried again yet."""
        if self.state is MergedState.FAILED:
            left = self.retry_at - time.monotonic()
            if left > 0 and self.problem is not None:
                return self._not_started(self.problem, left)
        engine = self.engine
        if engine is not None and engine.state is EngineState.DOWN and engine.failure is not None:
            return self._not_started(engine.failure, engine.retry_in)
        return None

    def not_yet(self, waited: float) -> EngineUnavailable:
        """The error for who has waited `waited` seconds for it."""
        if self.state is MergedState.READY:
            what, after = "is down and will be started again", 5
        else:
            what = "is starting" if self.state is MergedState.STARTING else "waits for memory"
            passed = time.monotonic() - self._since
            after = max(1, math.ceil((self.start_seconds or TYPICAL_START) - passed))
        return EngineUnavailable(
            f"the merged engine of {self.model.name} {what} (waited {waited:.0f} s); try again in "
            f"{after} s",
            retry_after=after,
        )

    def _not_started(self, error: AdapterctlError, left: float) -> EngineUnavailable:
        seconds = max(1, math.ceil(left))
        return EngineUnavailable(
            f"the merged engine of {self.model.name} could not be started ({error.message}); it is "
            f"tried again in {seconds} s",
            retry_after=seconds,
        )

    def status(self) -> MergedStatus:
        engine = self.engine.status() if self.engine is not None else None
        problem = self.engine.failure if self.engine and self.engine.failure else self.problem
        state = self._shown()
        waits = state in {MergedState.FAILED, MergedState.DOWN}
        left = self.engine.retry_in if self.engine else self.retry_at - time.monotonic()
        return MergedStatus(
            model=self.model.digest,
            name=self.model.name,
            base=self.model.base,
            state=state,
            since=self.since,
            pinned=self.pinned,
            in_flight=self.in_flight,
            waiting=self.waiting,
            memory=self.plan.total if self.plan else 0,
            pid=engine.pid if engine else None,
            address=engine.address if engine else "",
            starts=self.starts,
            failures=self.failures,
            restarts=engine.restarts if engine else 0,
            start_seconds=self.start_seconds,
            idle_seconds=time.monotonic() - self.used if self.ready and self.unused else None,
            detail=problem.message if problem else (engine.detail if engine else ""),
            log_tail=problem.log_tail if isinstance(problem, EngineStartFailed) else "",
            retry_in=max(0.0, left) if waits else None,
        )

    def _shown(self) -> MergedState:
        if self.state is not MergedState.READY or self.engine is None:
            return self.state
        if self.retired:
            return MergedState.DRAINING
        return {
            EngineState.READY: MergedState.READY,
            EngineState.STARTING: MergedState.STARTING,
        }.get(self.engine.state, MergedState.DOWN)


class EngineHold:
    """A merged engine in use: it is neither stopped for being idle nor evicted until released."""

    def __init__(self, member: Member):
        self._member: Member | None = member
        self._engine = member.engine
        self.model = member.model
        member.in_flight += 1
        member.touch()

    @property
    def engine_model(self) -> str:
        """The name under which the engine knows the model."""
        return engine_name(self.model.digest)

    def transport(self) -> EngineTransport:
        """The connections to it; raises EngineUnavailable where it went away since."""
        assert self._engine is not None
        return self._engine.transport()

    def release(self) -> None:
        """The request has ended; safe to call again."""
        member, self._member = self._member, None
        if member is not None:
            member.in_flight -= 1
            member.touch()
            member.notify()

    def __enter__(self) -> EngineHold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
