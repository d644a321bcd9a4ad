"""One run of an engine: a process session of its own, and nothing of it left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from adapters.errors import EngineStartFailed
from server.engine.command import EngineCommand

LOG_TAIL_LINES = 40


class EngineProcess:
    """A started vLLM with its children (engine core, workers), all in one process session."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process
        self.pid = process.pid
        # Set by who waits for it.
        self.became_ready = False

    @classmethod
    async def spawn(cls, command: EngineCommand) -> EngineProcess:
        """Start the command; raises EngineStartFailed when that is not possible at all."""
        # A socket file left by a killed run makes vLLM's bind fail.
        command.socket.unlink(missing_ok=True)
        return await cls.execute(command.argv, command.environment, command.log)

    @classmethod
    async def execute(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        stdin: int = asyncio.subprocess.DEVNULL,
    ) -> EngineProcess:
        """Run any program as an engine is run; raises EngineStartFailed."""
        try:
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    env=dict(environment),
                    stdin=stdin,
                    stdout=output,
                    stderr=output,
                    # A session of its own: a Ctrl-C in the terminal is for the server, which
                    # then stops the engine in order; and the session names all descendants.
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineStartFailed(f"the engine cannot be started: {error}") from error
        return cls(process)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._process.returncode

    @property
    def ended_unready(self) -> bool:
        """Whether it ended before it could answer: something is wrong with how it was started."""
        return self.exit_code is not None and not self.became_ready

    async def wait(self) -> int:
        """Until the main process has ended."""
        return await self._process.wait()

    async def stop(self, timeout: float) -> None:
        """SIGTERM, `timeout` seconds to end in order, then SIGKILL for whatever is left."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._process.wait()
        await self.reap()

    async def reap(self) -> None:
        """Kill every process of the session, and see them gone."""
        while remaining := await asyncio.to_thread(session_members, self.pid):
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
        await self._process.wait()


class Spawner(Protocol):
    """How an engine's process comes to be: from nothing, or from one that waits (standby.py)."""

    async def spawn(self, command: EngineCommand) -> EngineProcess:
        """A process of its own session that runs the command; raises EngineStartFailed."""


class PlainSpawner:
    """Starts every engine from nothing."""

    async def spawn(self, command: EngineCommand) -> EngineProcess:
        return await EngineProcess.spawn(command)


def session_members(session: int) -> list[int]:
    """The living processes (no zombies) of a process session, by id."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


# How Python ends a traceback, behind the "(APIServer pid=1)" that vLLM puts before its lines.
_CAUSE = re.compile(
    r"^(?:\([\w-]+ pid=\d+\)\s*)?(?:[A-Z]+ [\d: -]+\[[^]]*\]\s*)?\s*"
    r"((?:[\w.]*(?:Error|Exception)|Value error)\b[:,].*)"
)
LONGEST_CAUSE = 400


def failure_cause(tail: str) -> str:
    """The line of an engine's log that says why it failed; its last line where none does.

    The first error of the last lines: what follows is only "engine core failed to start".
    """
    lines = [line for line in tail.splitlines() if line.strip()]
    causes = [found.group(1) for line in lines if (found := _CAUSE.match(line))]
    # pydantic announces "ValidationError: 1 validation error for X" and says it a line later.
    telling = [cause for cause in causes if "validation error for" not in cause]
    cause = (telling or causes or lines[-1:] or ["its log is empty"])[0]
    return cause.partition(" [type=")[0].strip()[:LONGEST_CAUSE]


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of an engine's log, for the error that says it failed."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(deque(text.splitlines(), maxlen=lines))
