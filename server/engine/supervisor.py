"""Keep one engine running: start, readiness, restart with back-off, orderly stop."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import EngineStartFailed
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand
from server.engine.engines import HEALTH_TIMEOUT, EngineState, EngineStatus, unavailable
from server.engine.process import EngineProcess, PlainSpawner, Spawner, failure_cause, log_tail
from server.engine.transport import EngineAddress, EngineTransport
from server.engine.watchdog import until_hung
from server.ongoing import Ongoing
from server.settings import ServeSettings

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
# An engine that answered this long had no start-up problem: its next restart is immediate again.
# Longer than a request takes that kills every engine it is sent to, where the clients try again.
STABLE_AFTER = 20.0
HEALTH_INTERVAL = 5.0
# vLLM ends itself when its core dies, but its health check fails first; give it that time.
FAILED_CHECKS = 3
LOG_LIMIT = 32 * 1024 * 1024


class SupervisedEngine:
    """An engine that this server starts and keeps alive. Implements `Engine`."""

    def __init__(
        self,
        settings: ServeSettings,
        base: str,
        plan: Callable[[], Capacity],
        command: Callable[[Capacity, str], EngineCommand],
        spawner: Spawner | None = None,
        changed: Callable[[], None] = lambda: None,
    ):
        """`plan` and `command` (given the plan and a new engine id) are asked before every
        start: the registry grows while the server runs. `spawner` makes its processes; None:
        each from nothing. `changed` is called after every change of state."""
        self._settings = settings
        self._base = base
        self._plan = plan
        self._make_command = command
        self._spawner = spawner or PlainSpawner()
        self._changed = changed
        self._command: EngineCommand | None = None
        self._state = EngineState.STARTING
        self._since = datetime.now(UTC)
        self._detail = ""
        self._restarts = 0
        self._capacity: Capacity | None = None
        self._id = ""
        self._process: EngineProcess | None = None
        self._transport: EngineTransport | None = None
        self._keeper = Ongoing(self._keep_alive)
        self._failure: EngineStartFailed | None = None
        self._retry_at = 0.0

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def failure(self) -> EngineStartFailed | None:
        """Why its last start failed; None once one succeeds."""
        return self._failure

    @property
    def retry_in(self) -> float:
        """Seconds until it is started again, while it is down."""
        return max(0.0, self._retry_at - time.monotonic())

    @property
    def capacity(self) -> Capacity | None:
        return self._capacity

    @property
    def restarts(self) -> int:
        return self._restarts

    async def start(self) -> None:
        """Bring it up for the first time. A first start that fails is not tried again:
        what is wrong then (no memory, a broken base) needs a person."""
        try:
            await self._bring_up()
        except BaseException:
            await self._take_down()
            raise
        self._keeper.start()

    async def stop(self) -> None:
        await self._keeper.close()
        await self._take_down()
        self._set(EngineState.STOPPED)

    def transport(self) -> EngineTransport:
        if self._transport is None or self._state is not EngineState.READY:
            raise unavailable(self._state, self._detail)
        return self._transport

    def status(self) -> EngineStatus:
        return EngineStatus(
            id=self._id,
            kind="supervised",
            base=self._base,
            state=self._state,
            address=f"unix:{self._command.socket}" if self._command is not None else "",
            pid=self._process.pid if self._process is not None else None,
            restarts=self._restarts,
            since=self._since,
            slots=self._capacity.slots if self._capacity else None,
            cpu_adapters=self._capacity.cpu_adapters if self._capacity else None,
            max_rank=self._capacity.max_rank if self._capacity else None,
            detail=self._detail,
            computes=self._command.computes if self._command is not None else "",
        )

    async def _bring_up(self) -> None:
        self._set(EngineState.STARTING)
        self._id = uuid.uuid4().hex
        self._capacity = self._plan()
        self._command = command = self._make_command(self._capacity, self._id)
        _bound_log(command.log)
        self._process = await self._spawner.spawn(command)
        self._transport = EngineTransport(
            EngineAddress("http://engine", command.socket), self._settings.connect_timeout
        )
        await self._until_ready(command, self._process, self._transport)
        self._process.became_ready = True
        self._set(EngineState.READY)

    async def _until_ready(
        self, command: EngineCommand, process: EngineProcess, transport: EngineTransport
    ) -> None:
        deadline = time.monotonic() + self._settings.start_timeout
        while time.monotonic() < deadline:
            if process.exit_code is not None:
                raise _start_failed(command, _describe_exit(process.exit_code))
            # The socket file exists long before the server answers.
            if command.socket.exists() and await transport.healthy(timeout=HEALTH_TIMEOUT):
                return
            await asyncio.sleep(0.2)
        raise _start_failed(command, f"was not ready within {self._settings.start_timeout:g} s")

    async def _keep_alive(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            ready_at = time.monotonic()
            assert self._process is not None
            reason = await self._until_dead(self._process)
            logger.error("the engine %s; starting it again", reason)
            self._set(EngineState.DOWN, reason)
            # Dead or deaf: nothing of it ends in order, and its requests have waited enough.
            await self._take_down(in_order=False)
            if time.monotonic() - ready_at > STABLE_AFTER:
                backoff = FIRST_BACKOFF
            backoff = await self._revive(backoff)

    async def _revive(self, backoff: float) -> float:
        """Start again until it is ready; returns the back-off for the failure after that."""
        while True:
            self._retry_at = time.monotonic() + backoff
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LONGEST_BACKOFF)
            self._restarts += 1
            try:
                await self._bring_up()
            except EngineStartFailed as error:
                logger.error("%s", error.message)
                self._failure = error
                self._set(EngineState.DOWN, error.message)
                await self._take_down()
            else:
                self._failure = None
                return backoff

    async def _until_dead(self, process: EngineProcess) -> str:
        """Wait for the engine's end: its process exits, it stops answering its health check, or
        what is behind that hangs."""
        assert self._transport is not None
        failed = 0
        ended = asyncio.create_task(process.wait())
        limit = self._settings.hang_timeout
        hung = asyncio.create_task(
            until_hung(self._transport, process.pid, limit=limit, interval=HEALTH_INTERVAL)
        )
        try:
            while failed < FAILED_CHECKS:
                await asyncio.wait(
                    {ended, hung}, timeout=HEALTH_INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
                if ended.done():
                    return _describe_exit(ended.result())
                if hung.done():
                    return hung.result()
                answered = await self._transport.healthy(timeout=HEALTH_TIMEOUT)
                failed = 0 if answered else failed + 1
            return f"failed {FAILED_CHECKS} health checks"
        finally:
            ended.cancel()
            hung.cancel()

    async def _take_down(self, *, in_order: bool = True) -> None:
        transport, self._transport = self._transport, None
        process, self._process = self._process, None
        if transport is not None:
            await transport.close()
        if process is not None:
            await (process.stop(self._settings.stop_timeout) if in_order else process.reap())
        if self._command is not None:
            self._command.socket.unlink(missing_ok=True)

    def _set(self, state: EngineState, detail: str = "") -> None:
        self._detail = detail
        if state is not self._state:
            self._state = state
            self._since = datetime.now(UTC)
            self._changed()


def _bound_log(log: Path) -> None:
    """Keep one older log: an engine that restarts for weeks must not fill the disk."""
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))


def _start_failed(command: EngineCommand, what: str) -> EngineStartFailed:
    tail = log_tail(command.log)
    return EngineStartFailed(
        f"the engine {what} while starting: {failure_cause(tail)}; its log is {command.log}",
        log_tail=tail,
    )


def _describe_exit(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
