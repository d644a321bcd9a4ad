"""What the gateway needs of an engine, and the engine that somebody else runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol

from adapters.errors import EngineStartFailed, EngineUnavailable
from adapters.frozen import Frozen
from server.engine.capacity import Capacity
from server.engine.transport import EngineAddress, EngineTransport
from server.ongoing import Ongoing

HEALTH_TIMEOUT = 5.0


class EngineState(StrEnum):
    """`starting` until it first answers, `ready`, `down` between a failure and the next start."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    STOPPED = "stopped"


class EngineStatus(Frozen):
    """What `adapterctl engines` shows of one engine."""

    id: str
    kind: str
    base: str
    state: EngineState
    address: str
    pid: int | None
    restarts: int
    since: datetime
    slots: int | None
    cpu_adapters: int | None
    max_rank: int | None
    detail: str
    # Threads, cores and libraries it was started with, and why; empty where that is not known.
    computes: str = ""

    @property
    def again(self) -> bool:
        """Whether it was ready before and is coming back."""
        return self.state is EngineState.DOWN or (
            self.state is EngineState.STARTING and self.restarts > 0
        )


class Engine(Protocol):
    """An engine that serves one base and its hot adapters."""

    @property
    def capacity(self) -> Capacity | None:
        """What it was started with; None where somebody else started it."""

    @property
    def restarts(self) -> int:
        """How often it was started again after a failure."""

    async def start(self) -> None:
        """Begin; returns when it is ready for the first time or raises EngineStartFailed."""

    async def stop(self) -> None:
        """End it and everything it started."""

    def transport(self) -> EngineTransport:
        """The connections to a ready engine; raises EngineUnavailable with Retry-After."""

    def status(self) -> EngineStatus:
        """A snapshot for people and metrics."""


def unavailable(state: EngineState, detail: str) -> EngineUnavailable:
    """The error for a request that comes while the engine is not ready."""
    what = {
        EngineState.STARTING: "the engine is starting",
        EngineState.DOWN: "the engine is down and will be started again",
        EngineState.STOPPED: "the server is stopping",
    }[state]
    after = 10 if state is EngineState.STARTING else 5
    suffix = f" ({detail})" if detail else ""
    return EngineUnavailable(f"{what}{suffix}; try again in {after} s", retry_after=after)


def says_core_is_dead(message: object) -> bool:
    """vLLM's API server outlives its core for seconds, and answers every request with this."""
    if not isinstance(message, str):
        return False
    return "EngineCore encountered an issue" in message or "EngineDeadError" in message


def core_is_dead() -> EngineUnavailable:
    """The error while an engine still answers, but only that nothing is behind it any more."""
    return EngineUnavailable(
        "the engine has failed and is being started again; try again in 10 s", retry_after=10
    )


class ExternalEngine:
    """An engine that was there before: watched, never started or stopped."""

    def __init__(
        self, address: EngineAddress, base: str, *, connect_timeout: float, start_timeout: float
    ):
        self._address = address
        self._base = base
        self._connect_timeout = connect_timeout
        self._start_timeout = start_timeout
        self._state = EngineState.STARTING
        self._since = datetime.now(UTC)
        self._transport: EngineTransport | None = None
        self._watch = Ongoing(self._keep_watching)

    @property
    def capacity(self) -> Capacity | None:
        return None

    @property
    def restarts(self) -> int:
        return 0

    async def start(self) -> None:
        self._transport = EngineTransport(self._address, self._connect_timeout)
        try:
            async with asyncio.timeout(self._start_timeout):
                while not await self._transport.healthy(timeout=HEALTH_TIMEOUT):
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise EngineStartFailed(
                f"no engine answered at {self._address} within {self._start_timeout:g} s"
            ) from None
        await self._check_base()
        self._set(EngineState.READY)
        self._watch.start()

    async def _check_base(self) -> None:
        assert self._transport is not None
        models = await self._transport.get_json("/v1/models", timeout=HEALTH_TIMEOUT)
        served = [entry["id"] for entry in models["data"]]
        if self._base not in served:
            raise EngineStartFailed(
                f"the engine at {self._address} serves {', '.join(served) or 'nothing'}, not "
                f"'{self._base}': start it with --served-model-name {self._base}"
            )

    async def stop(self) -> None:
        self._set(EngineState.STOPPED)
        await self._watch.close()
        if self._transport is not None:
            await self._transport.close()

    def transport(self) -> EngineTransport:
        if self._transport is None or self._state is not EngineState.READY:
            raise unavailable(self._state, "")
        return self._transport

    def status(self) -> EngineStatus:
        return EngineStatus(
            id="external",
            kind="external",
            base=self._base,
            state=self._state,
            address=str(self._address),
            pid=None,
            restarts=0,
            since=self._since,
            slots=None,
            cpu_adapters=None,
            max_rank=None,
            detail="",
        )

    async def _keep_watching(self) -> None:
        assert self._transport is not None
        while True:
            await asyncio.sleep(2)
            alive = await self._transport.healthy(timeout=HEALTH_TIMEOUT)
            self._set(EngineState.READY if alive else EngineState.DOWN)

    def _set(self, state: EngineState) -> None:
        if state is not self._state:
            self._state = state
            self._since = datetime.now(UTC)
