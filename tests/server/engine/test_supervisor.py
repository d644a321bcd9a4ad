"""Supervision of a real process tree; tests/engine repeats the main cases with vLLM itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import server.engine.supervisor as supervisor_module
from adapters.errors import EngineStartFailed, EngineUnavailable
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand
from server.engine.engines import EngineState
from server.engine.process import session_members
from server.engine.supervisor import SupervisedEngine
from server.settings import ServeSettings

SMALL_ENGINE = Path(__file__).with_name("small_engine.py")

Make = Callable[[str], SupervisedEngine]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.1)
    monkeypatch.setattr(supervisor_module, "HEALTH_INTERVAL", 0.2)
    made: list[SupervisedEngine] = []

    def _make(mode: str) -> SupervisedEngine:
        settings = ServeSettings(store=tmp_path, base="b", start_timeout=5, stop_timeout=0.5)

        def command(capacity: Capacity, engine_id: str) -> EngineCommand:
            socket, log = tmp_path / "engine.sock", tmp_path / "engine.log"
            argv = (sys.executable, str(SMALL_ENGINE), str(socket), mode)
            return EngineCommand(argv, dict(os.environ), socket, log)

        made.append(SupervisedEngine(settings, "b", lambda: Capacity(8, 8, 16), command))
        return made[-1]

    yield _make
    for engine in made:
        await engine.stop()


def pid_of(engine: SupervisedEngine) -> int:
    pid = engine.status().pid
    assert pid is not None
    return pid


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_it_starts_answers_and_stops_with_everything_it_started(make: Make) -> None:
    engine = make("serve")
    with pytest.raises(EngineUnavailable, match="starting") as unavailable:
        engine.transport()
    assert unavailable.value.retry_after
    await engine.start()
    assert engine.status().state is EngineState.READY
    assert await engine.transport().healthy(timeout=1)
    pid = pid_of(engine)
    assert len(session_members(pid)) == 2
    await engine.stop()
    assert session_members(pid) == []
    with pytest.raises(EngineUnavailable, match="stopping"):
        engine.transport()


async def test_a_socket_left_by_a_killed_run_does_not_keep_it_from_starting(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "engine.sock").write_text("stale")
    engine = make("serve")
    await engine.start()
    assert engine.status().state is EngineState.READY


async def test_a_first_start_that_fails_says_how_its_log_ends(make: Make) -> None:
    with pytest.raises(EngineStartFailed) as failed:
        await make("fail").start()
    assert "ended with 3 while starting: OSError: no space for the weights" in failed.value.message
    assert "\n" not in failed.value.message
    assert failed.value.log_tail.startswith("loading the weights\n")


async def test_an_engine_that_never_listens_is_given_up_and_removed(
    make: Make, tmp_path: Path
) -> None:
    engine = make("deaf")
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status().pid is not None)
    pid = pid_of(engine)
    with pytest.raises(EngineStartFailed, match="not ready within 5 s"):
        await starting
    assert session_members(pid) == []


async def test_a_stubborn_engine_is_killed_after_its_time(make: Make) -> None:
    engine = make("stubborn")
    await engine.start()
    pid = pid_of(engine)
    began = time.monotonic()
    await engine.stop()
    assert 0.5 <= time.monotonic() - began < 5
    assert session_members(pid) == []


async def test_a_killed_engine_is_started_again_and_leaves_no_child(make: Make) -> None:
    engine = make("serve")
    await engine.start()
    first = pid_of(engine)
    first_id = engine.status().id
    os.kill(first, signal.SIGKILL)
    await until(lambda: engine.status().state is EngineState.DOWN)
    with pytest.raises(EngineUnavailable, match="started again"):
        engine.transport()
    await until(lambda: engine.status().state is EngineState.READY)
    assert session_members(first) == []
    assert engine.restarts == 1
    # A new id: leases of the dead run must not look like those of the new one.
    assert engine.status().id != first_id


@pytest.mark.parametrize(("stable_after", "waits"), [(0.0, [0.4] * 3), (60.0, [0.4, 0.8, 1.6])])
async def test_only_an_engine_that_dies_soon_waits_longer_each_time(
    make: Make, monkeypatch: pytest.MonkeyPatch, stable_after: float, waits: list[float]
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_BACKOFF", 0.4)
    monkeypatch.setattr(supervisor_module, "STABLE_AFTER", stable_after)
    engine = make("serve")
    await engine.start()
    seen = []
    for died in range(len(waits)):
        os.kill(pid_of(engine), signal.SIGKILL)
        await until(lambda: engine.status().state is EngineState.DOWN and engine.retry_in > 0)
        seen.append(engine.retry_in)
        await until(lambda: engine.status().state is EngineState.READY)
        assert engine.restarts == died + 1
    for wait, found in zip(waits, seen, strict=True):
        assert wait / 2 < found <= wait


async def test_an_engine_that_fails_its_health_checks_is_replaced(make: Make) -> None:
    engine = make("sick")
    await engine.start()
    first = pid_of(engine)
    await until(lambda: engine.restarts >= 1 and engine.status().state is EngineState.READY)
    assert session_members(first) == []


async def test_stopping_while_it_starts_leaves_nothing(make: Make) -> None:
    engine = make("deaf")
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status().pid is not None)
    pid = pid_of(engine)
    await until(lambda: len(session_members(pid)) == 2)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert session_members(pid) == []
