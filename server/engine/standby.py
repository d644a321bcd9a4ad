"""One process that has done vLLM's imports and only lacks a model, kept for the next start.

`StandbySpawner` is given the commands of engines. It hands one to the process that waits
(`server.vllm_plugin.warm`), over the socket that is that process's standard input; its log file,
its environment and its arguments are then those of the command. A while later the next process is
made, with the environment of the last command. Whatever does not fit or does not answer is ended,
and the engine is started without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import adapters
import server
from adapters.errors import EngineStartFailed
from server.engine.cgroups import machine_memory
from server.engine.command import EngineCommand
from server.engine.launch import LAUNCH_MODULE, STANDBY, START_VARIABLE
from server.engine.process import EngineProcess
from server.ongoing import Ongoing

logger = logging.getLogger(__name__)

# What a waiting process takes (measured, docs/engines.md), and what must be free beyond it.
STANDBY_BYTES = 600 * 1024**2
SPARE_BYTES = 1024**3
# Seconds after the last start of an engine: its own start is to have the processors.
SETTLE = 30.0
# Imports on a machine that is busy with other things take far longer than on an idle one.
READY_WITHIN = 180.0
TAKEN_WITHIN = 15.0
# Between attempts, when one failed or when memory is short.
PAUSE = 60.0
GIVE_UP_AFTER = 3

_LARGEST_MESSAGE = 1 << 20


class StandbySpawner:
    """Makes engine processes of a process that waits, where there is one. Implements `Spawner`."""

    def __init__(
        self,
        log: Path,
        *,
        settle: float = SETTLE,
        program: Sequence[str] | None = None,
        enough_memory: Callable[[], bool] | None = None,
    ):
        """`log` takes what waiting processes write; `program` stands in for the launcher."""
        self._log = log
        self._settle = settle
        self._program = program or (sys.executable, "-m", LAUNCH_MODULE, str(os.getpid()), STANDBY)
        self._enough_memory = enough_memory or has_room
        self._environment: Mapping[str, str] | None = None
        self._waiting: _Waiting | None = None
        self._handed: EngineProcess | None = None
        self._quiet_at = 0.0
        self._failures = 0
        self._hurry = asyncio.Event()
        self._keeper = Ongoing(self._keep)

    @property
    def pid(self) -> int | None:
        """The process that waits; None while there is none."""
        return self._waiting.process.pid if self._waiting is not None else None

    @property
    def ready(self) -> bool:
        """Whether an engine started now would be made of a process that has its imports."""
        return self._waiting is not None and self._waiting.ready.is_set()

    async def spawn(self, command: EngineCommand) -> EngineProcess:
        """The waiting process if it fits, else a new one; raises EngineStartFailed."""
        arguments = _arguments(command)
        if arguments is None:
            return await EngineProcess.spawn(command)
        self._begin(command, self._settle)
        last, self._handed = self._handed, None
        if last is not None and last.ended_unready:
            logger.warning("the last engine made of a standby did not come up: one without it")
        elif self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._handed = await waiting.become(arguments, command)
        return self._handed or await EngineProcess.spawn(command)

    def prepare(self, command: EngineCommand) -> None:
        """Have a process made now, for engines like this one; does not wait for it."""
        self._begin(command, 0)
        self._hurry.set()

    def _begin(self, command: EngineCommand, settle: float) -> None:
        self._environment = command.environment
        self._quiet_at = time.monotonic() + settle
        self._keeper.start()

    async def close(self) -> None:
        """End the process that waits; engines are left alone."""
        await self._keeper.close()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            await waiting.discard()

    async def _keep(self) -> None:
        """Make a process whenever none waits, some time after the last start."""
        while self._failures < GIVE_UP_AFTER:
            left = self._quiet_at - time.monotonic()
            if left > 0:
                await self._pause(left)
            elif not self._enough_memory():
                await self._pause(PAUSE)
            else:
                await self._make_one()
        logger.warning("no standby is kept any more; see %s", self._log)

    async def _pause(self, seconds: float) -> None:
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    async def _make_one(self) -> None:
        """Make one, and watch it until it is taken or ended."""
        assert self._environment is not None
        try:
            self._waiting = waiting = await _Waiting.start(
                self._program, self._environment, self._log
            )
        except EngineStartFailed as error:
            logger.warning("no standby: %s", error.message)
            self._failures += 1
            await asyncio.sleep(PAUSE)
            return
        await waiting.gone_or_taken()
        self._failures = 0 if waiting.ready.is_set() else self._failures + 1
        if self._waiting is waiting:
            self._waiting = None
            await waiting.discard()
            logger.warning("the standby (process %d) ended", waiting.process.pid)
            self._quiet_at = time.monotonic() + PAUSE


class _Waiting:
    """A process that imports, then waits for an engine's command."""

    def __init__(
        self,
        process: EngineProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stamp: object,
    ):
        self.process = process
        self.ready = asyncio.Event()
        self._answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._taken = asyncio.Event()
        self._stamp = stamp
        self._writer = writer
        self._listening = asyncio.create_task(self._listen(reader))

    @classmethod
    async def start(
        cls, program: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> _Waiting:
        stamp = await asyncio.to_thread(install_stamp)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                _empty(log)
                process = await EngineProcess.execute(
                    program, environment, log, stdin=theirs.fileno()
                )
            except (OSError, EngineStartFailed) as error:
                ours.close()
                raise EngineStartFailed(f"a standby cannot be started: {error}") from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_LARGEST_MESSAGE)
        return cls(process, reader, writer, stamp)

    async def become(self, arguments: list[str], command: EngineCommand) -> EngineProcess | None:
        """This process as the engine of `command`; None (and it is ended) if it does not take it.

        One that still imports is waited for: it has begun already.
        """
        self._taken.set()
        command.socket.unlink(missing_ok=True)
        why = ""
        try:
            if self._stamp != await asyncio.to_thread(install_stamp):
                why = "the installed software has changed"
            else:
                async with asyncio.timeout(READY_WITHIN):
                    await self._until_ready()
                async with asyncio.timeout(TAKEN_WITHIN):
                    answer = await self._order(arguments, command)
                why = str(answer.get("refused", ""))
        except (TimeoutError, OSError, EOFError) as error:
            why = f"it did not answer ({error or type(error).__name__})"
        except BaseException:
            await self.discard()
            raise
        if not why:
            self._close()
            return self.process
        logger.warning("the engine is started without the standby: %s", why)
        await self.discard()
        return None

    async def gone_or_taken(self) -> None:
        """Until it is given a command, or has ended."""
        taken = asyncio.create_task(self._taken.wait())
        try:
            await asyncio.wait({taken, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()

    async def discard(self) -> None:
        self._close()
        await self.process.reap()

    def _close(self) -> None:
        self._listening.cancel()
        self._writer.close()

    async def _until_ready(self) -> None:
        ready = asyncio.create_task(self.ready.wait())
        try:
            await asyncio.wait({ready, self._listening}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not self.ready.is_set():
            raise EOFError("it has ended")

    async def _order(self, arguments: list[str], command: EngineCommand) -> dict[str, Any]:
        order = {
            "arguments": arguments,
            "environment": dict(command.environment),
            "log": str(command.log),
        }
        self._writer.write(json.dumps(order).encode() + b"\n")
        await self._writer.drain()
        return await self._answer

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Note what the process says; ends when it closes its end."""
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "ready" in message:
                    self.ready.set()
                elif not self._answer.done():
                    self._answer.set_result(message)
        except (OSError, ValueError) as error:
            logger.warning("the standby said something else than expected: %s", error)
        if not self._answer.done():
            self._answer.set_exception(EOFError("it has ended"))
            self._answer.exception()  # nobody may be waiting for it


def _arguments(command: EngineCommand) -> list[str] | None:
    """vLLM's arguments in a command that a standby may take; None for another one."""
    if command.environment.get(START_VARIABLE) != "standby":
        return None
    assert command.argv[:3] == (sys.executable, "-m", LAUNCH_MODULE), command.argv
    return list(command.argv[4:])


def _empty(log: Path) -> None:
    """Of the standbys' own words only the last one's are kept."""
    log.unlink(missing_ok=True)


def has_room() -> bool:
    """Whether memory for a standby is free, with something to spare."""
    return machine_memory().available >= STANDBY_BYTES + SPARE_BYTES


def install_stamp() -> tuple[tuple[str, int], ...]:
    """Changes when anything that an engine imports is installed anew, or our own code changes.

    An installation replaces the distribution's directory of metadata, which changes the time of
    the directory around it.
    """
    directories = [Path(entry) for entry in sys.path if Path(entry).name.endswith("-packages")]
    files: list[Path] = []
    for package in (adapters, server):
        for root in package.__path__:
            files += Path(root).rglob("*.py")
    stamp = []
    for path in [*directories, *files]:
        with contextlib.suppress(OSError):
            stamp.append((str(path), path.stat().st_mtime_ns))
    return tuple(stamp)
