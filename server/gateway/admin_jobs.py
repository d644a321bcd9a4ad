"""Work with tensors, in a child process: the gateway imports no torch and never waits for one.

    parent                                   child (server.cli.worker)
    stdin:  one line, the order        ->    LocalBackend on the same store
    stdout: one JSON document a line   <-    {"step"}, {"progress"}, then {"result"} or {"error"}
    stdin closed                       ->    stop, leave nothing half done

A closed stdin is also what the child sees when the server is killed: no orphan stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from adapters.audit import current_origin
from adapters.errors import AdapterctlError, StoreBusy, error_classes

log = logging.getLogger(__name__)

Event = dict[str, Any]

# A client's read time-out must outlast this many seconds of silence.
HEARTBEAT_S = 10.0
# Longer than the worker's own grace.
_STOP_S = 25.0
_MAX_WAITING = 32
# An event is one line; a manifest with every target of a large model fits many times.
_LINE_LIMIT = 16 * 1024 * 1024


class JobRunner:
    """Runs one child at a time, so that two registrations never share the memory of one."""

    def __init__(self, store: Path, refresh: Callable[[], object]) -> None:
        """`refresh` is called when a child has succeeded, before the client hears of it."""
        self._store = store
        self._refresh = refresh
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def events(
        self, operation: str, arguments: BaseModel | None, actor: str
    ) -> AsyncGenerator[Event]:
        """The child's events; {} now and then while there are none. Closing it stops the child.

        The last event is {"result": ...}; every failure is raised as AdapterctlError.
        """
        if self._waiting >= _MAX_WAITING:
            raise StoreBusy("too many registrations are waiting: try again", retry_after=10)
        self._waiting += 1
        try:
            async for idle in _locking(self._turn):
                yield idle
            try:
                async with aclosing(self._run(operation, arguments, actor)) as events:
                    async for event in events:
                        yield event
            finally:
                self._turn.release()
        finally:
            self._waiting -= 1

    async def _run(
        self, operation: str, arguments: BaseModel | None, actor: str
    ) -> AsyncGenerator[Event]:
        origin = current_origin()
        order = {
            "store": str(self._store),
            "operation": operation,
            "arguments": {} if arguments is None else arguments.model_dump(mode="json"),
            "actor": actor,
            # For the audit log: the child writes into it what it changes.
            "origin": None if origin is None else origin.document(),
        }
        child = await _start()
        complaint = asyncio.ensure_future(_tail(child))
        try:
            _hand_over(child, order)
            async with aclosing(_read(child)) as events:
                async for event in events:
                    if "audited" in event:
                        if origin is not None:
                            origin.rows += event["audited"]
                        continue
                    if "error" in event:
                        raise _error(event)
                    if "result" in event:
                        await run_in_threadpool(self._refresh)
                        yield event
                        return
                    yield event
            raise await _death(child, complaint)
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(child)
                await asyncio.wait([complaint], timeout=1)
                complaint.cancel()


async def result_of(events: AsyncGenerator[Event]) -> Any:
    """Runs to the end; returns the result's document."""
    found: Any = None
    async with aclosing(events):
        async for event in events:
            found = event.get("result", found)
    return found


async def _locking(lock: asyncio.Lock) -> AsyncGenerator[Event]:
    """Takes the lock; yields {} now and then while it is not free."""
    taking = asyncio.ensure_future(lock.acquire())
    try:
        while not (await asyncio.wait([taking], timeout=HEARTBEAT_S))[0]:
            yield {}
    except BaseException:
        if not taking.cancel():
            lock.release()
        raise


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        # Safe path: a directory called `adapters` where the server was started is not ours.
        "-P",
        "-m",
        "server.cli.worker",
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_LIMIT,
        # Ctrl-C in the server's terminal is for the server, which then stops its children.
        start_new_session=True,
    )


def _hand_over(child: Process, order: Event) -> None:
    assert child.stdin is not None
    # A child that is dead already (killed for its memory, say) has closed the pipe, which uvloop
    # shows as a RuntimeError; how it ended is then told from its output's end.
    with contextlib.suppress(RuntimeError, OSError):
        child.stdin.write(json.dumps(order).encode() + b"\n")


async def _read(child: Process) -> AsyncGenerator[Event]:
    """Events until the end of the child's output."""
    assert child.stdout is not None
    while True:
        try:
            line = await asyncio.wait_for(child.stdout.readline(), HEARTBEAT_S)
        except TimeoutError:
            yield {}
            continue
        if not line:
            return
        event = json.loads(line)
        assert isinstance(event, dict), "the worker writes objects only"
        yield event


async def _tail(child: Process) -> list[str]:
    """The last lines of the child's stderr, which it never has to wait to write."""
    assert child.stderr is not None
    kept: list[str] = []
    while chunk := await child.stderr.read(65536):
        kept = ("".join(kept) + chunk.decode(errors="replace")).splitlines(keepends=True)[-40:]
    return kept


async def _stop(child: Process) -> None:
    """Ends the child: orderly by its closed stdin, else by force."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        await asyncio.wait_for(child.wait(), _STOP_S)
    except TimeoutError:
        child.kill()
        await child.wait()


async def _death(child: Process, complaint: asyncio.Future[list[str]]) -> AdapterctlError:
    code = await child.wait()
    log.error("a worker ended with %s:\n%s", code, "".join(await complaint))
    if code < 0:
        return AdapterctlError(
            f"the process that read the artifact was killed by signal {-code}: most likely this "
            "machine has too little free memory for it"
        )
    return AdapterctlError("the process that read the artifact failed; the server's log has why")


def _error(event: Event) -> AdapterctlError:
    body = event["error"]
    for cls in error_classes():
        if cls.code == body["code"]:
            return cls(body["message"], param=body.get("param"))
    return AdapterctlError(body["message"])
