"""Engines that live and do not work: what is found out, and what becomes of who waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import server.engine.supervisor as supervisor_module
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand
from server.engine.engines import EngineState
from server.engine.http_connection import ConnectionBroken
from server.engine.process import EngineProcess, session_members
from server.engine.supervisor import SupervisedEngine
from server.engine.transport import EngineAddress, EngineTransport
from server.engine.watchdog import until_hung
from server.settings import ServeSettings

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")


def command(tmp_path: Path, mode: str) -> EngineCommand:
    socket, log = tmp_path / "engine.sock", tmp_path / "engine.log"
    argv = (sys.executable, str(SMALL_ENGINE), str(socket), mode)
    return EngineCommand(argv, dict(os.environ), socket, log)


@contextlib.asynccontextmanager
async def small(tmp_path: Path, mode: str) -> AsyncIterator[tuple[EngineProcess, EngineTransport]]:
    order = command(tmp_path, mode)
    process = await EngineProcess.spawn(order)
    transport = EngineTransport(EngineAddress("http://engine", order.socket), 1)
    try:
        async with asyncio.timeout(10):
            while not await transport.healthy(timeout=1):
                await asyncio.sleep(0.02)
        yield process, transport
    finally:
        await transport.close()
        await process.reap()


async def verdict(tmp_path: Path, mode: str, *, patient: bool, within: float) -> str | None:
    """What is said of the engine within so many seconds; None: nothing."""
    async with small(tmp_path, mode) as (process, transport):
        watching = until_hung(transport, process.pid, limit=0.8, interval=0.1, patient=patient)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                return await watching
    return None


async def test_a_core_that_stands_still_behind_a_healthy_server_hangs(tmp_path: Path) -> None:
    found = await verdict(tmp_path, "hung", patient=True, within=10)
    assert found is not None
    assert "hangs: its core has not answered" in found


async def test_a_core_that_has_died_behind_a_healthy_server_is_found(tmp_path: Path) -> None:
    assert await verdict(tmp_path, "cored", patient=True, within=10) == "has lost its core"


async def test_one_that_computes_is_slow_where_steps_may_be_long(tmp_path: Path) -> None:
    assert await verdict(tmp_path, "busy", patient=True, within=3) is None
    assert await verdict(tmp_path, "busy", patient=False, within=10) is not None


@pytest.mark.parametrize("mode", ["serve", "bare"])
async def test_who_answers_or_cannot_be_asked_is_left_alone(tmp_path: Path, mode: str) -> None:
    assert await verdict(tmp_path, mode, patient=False, within=2) is None


@pytest.fixture
async def engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> AsyncIterator[SupervisedEngine]:
    """Supervised, with the watchdog's times made short; a stop in order would take a minute."""
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.1)
    monkeypatch.setattr(supervisor_module, "HEALTH_INTERVAL", 0.2)
    monkeypatch.setattr(supervisor_module, "HEALTH_TIMEOUT", 0.3)
    settings = ServeSettings(
        store=tmp_path, base="b", start_timeout=10, stop_timeout=60, hang_timeout=0.5
    )
    made = SupervisedEngine(
        settings, "b", lambda: Capacity(8, 8, 16), lambda _, __: command(tmp_path, mode)
    )
    await made.start()
    yield made
    # One that hangs again would not hear the order to stop.
    pid = made.status().pid
    for member in session_members(pid) if pid is not None else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    await made.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("mode", "stop"), [("hung", False), ("serve", True)])
async def test_an_engine_that_hangs_is_killed_and_replaced_and_who_waits_is_told(
    engine: SupervisedEngine, mode: str, stop: bool
) -> None:
    first = engine.status().pid
    assert first is not None
    waiting = asyncio.create_task(engine.transport().send("GET", "/wait", body=None, headers={}))
    stream = await engine.transport().send("GET", "/stream", body=None, headers={})
    reading = asyncio.create_task(stream.read())
    if stop:
        os.kill(first, signal.SIGSTOP)
    await until(lambda: engine.restarts == 1 and engine.state is EngineState.READY)
    assert session_members(first) == []
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionBroken):
            await waiting
        # Also who has had a part of the answer.
        with pytest.raises(ConnectionBroken):
            await reading
