"""Engines made of a process that waits; small processes in vLLM's place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import server.engine.standby as standby_module
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand
from server.engine.engines import EngineState
from server.engine.launch import START_VARIABLE
from server.engine.process import EngineProcess, session_members
from server.engine.standby import StandbySpawner, install_stamp
from server.engine.supervisor import SupervisedEngine
from server.settings import ServeSettings

SMALL = "tests.server.engine.small_standby"
ROOT = Path(__file__).parents[3]


class Bench:
    """Makes commands for small engines, and remembers what was started."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.spawner = self.make_spawner(settle=3600)
        self.started: list[EngineProcess] = []

    def make_spawner(self, settle: float) -> StandbySpawner:
        return StandbySpawner(
            self.directory / "standby.log", settle=settle, enough_memory=lambda: True
        )

    def command(
        self, engine_id: str = "one", mode: str = "serve", **environment: str
    ) -> EngineCommand:
        socket = self.directory / "engine.sock"
        return EngineCommand(
            argv=(sys.executable, "-m", SMALL, str(os.getpid()), str(socket), mode),
            environment={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                START_VARIABLE: "standby",
                "ADAPTERCTL_ENGINE_ID": engine_id,
                **environment,
            },
            socket=socket,
            log=self.directory / f"{engine_id}.log",
        )

    async def waiting(self, **environment: str) -> int:
        """A standby that has its imports; its process."""
        self.spawner.prepare(self.command(**environment))
        await until(lambda: self.spawner.ready)
        assert self.spawner.pid is not None
        return self.spawner.pid

    async def start(self, command: EngineCommand) -> EngineProcess:
        process = await self.spawner.spawn(command)
        self.started.append(process)
        await until(command.socket.exists)
        process.became_ready = True
        return process


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(standby_module, "LAUNCH_MODULE", SMALL)
    bench = Bench(tmp_path)
    yield bench
    await bench.spawner.close()
    for process in bench.started:
        await process.stop(0.1)


async def test_an_engine_is_made_of_the_process_that_waits(bench: Bench) -> None:
    pid = await bench.waiting()
    (bench.directory / "engine.sock").write_text("left by a killed run")
    process = await bench.start(bench.command("two"))
    assert process.pid == pid
    assert bench.spawner.pid is None
    # Its environment and its log are those of the command.
    assert "engine two" in (bench.directory / "two.log").read_text()
    assert "engine" not in (bench.directory / "standby.log").read_text()
    # With all that it starts it is one session, as any engine.
    assert len(session_members(pid)) == 2
    await process.stop(0.1)
    assert session_members(pid) == []


async def test_without_one_that_waits_the_engine_starts_by_itself(bench: Bench) -> None:
    process = await bench.start(bench.command())
    assert "engine one" in (bench.directory / "one.log").read_text()
    assert process.exit_code is None


async def test_the_next_one_is_made_when_the_start_is_over(bench: Bench) -> None:
    bench.spawner = bench.make_spawner(settle=0.5)
    first = await bench.start(bench.command())
    await until(lambda: bench.spawner.ready)
    second = await bench.start(bench.command("two"))
    assert second.pid != first.pid
    await until(lambda: bench.spawner.ready)
    assert bench.spawner.pid not in {first.pid, second.pid}


async def test_one_that_still_imports_is_waited_for(bench: Bench) -> None:
    bench.spawner.prepare(bench.command(SMALL_STANDBY="slow"))
    await until(lambda: bench.spawner.pid is not None)
    pid = bench.spawner.pid
    assert not bench.spawner.ready
    process = await bench.start(bench.command(SMALL_STANDBY="slow"))
    assert process.pid == pid


async def test_another_environment_is_refused_unless_it_is_read_late(bench: Bench) -> None:
    pid = await bench.waiting()
    process = await bench.start(bench.command("two", VLLM_LOGGING_LEVEL="DEBUG"))
    assert process.pid != pid
    assert session_members(pid) == []
    assert "engine two" in (bench.directory / "two.log").read_text()
    await process.stop(0.1)
    pid = await bench.waiting()
    assert (await bench.start(bench.command("three", VLLM_CPU_KVCACHE_SPACE="7"))).pid == pid


@pytest.mark.parametrize("mode", ["deaf", "odd"])
async def test_one_that_does_not_answer_is_ended_and_done_without(
    bench: Bench, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "TAKEN_WITHIN", 0.3)
    pid = await bench.waiting(SMALL_STANDBY=mode)
    process = await bench.start(bench.command("two", SMALL_STANDBY=mode))
    assert process.pid != pid
    assert session_members(pid) == []


async def test_one_that_was_killed_is_done_without(bench: Bench) -> None:
    pid = await bench.waiting()
    os.kill(pid, signal.SIGKILL)
    process = await bench.start(bench.command("two"))
    assert process.pid != pid
    assert "engine two" in (bench.directory / "two.log").read_text()


async def test_imports_that_fail_again_and_again_are_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(standby_module, "PAUSE", 0.05)
    bench.spawner.prepare(bench.command(SMALL_STANDBY="dies"))
    await until(lambda: "no standby is kept any more" in caplog.text)
    assert bench.spawner.pid is None
    assert "this import fails" in (bench.directory / "standby.log").read_text()
    await bench.start(bench.command(SMALL_STANDBY="dies"))


async def test_after_an_engine_that_did_not_come_up_the_next_starts_by_itself(
    bench: Bench,
) -> None:
    await bench.waiting()
    failed = await bench.spawner.spawn(bench.command(mode="fail"))
    bench.started.append(failed)
    assert await failed.wait() == 3
    pid = await bench.waiting()
    process = await bench.start(bench.command("two"))
    assert process.pid != pid
    await process.stop(0.1)
    # And the one after that is made of the one that waits still.
    assert (await bench.start(bench.command("three"))).pid == pid


async def test_what_is_installed_anew_is_not_served_by_old_imports(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await bench.waiting()
    monkeypatch.setattr(standby_module, "install_stamp", lambda: ("another",))
    assert (await bench.start(bench.command("two"))).pid != pid
    assert session_members(pid) == []


def test_the_stamp_follows_packages_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))
    before = install_stamp()
    assert install_stamp() == before
    (packages / "vllm-1.dist-info").mkdir()
    assert install_stamp() != before
    assert any(path.endswith("vllm_plugin/patches.py") for path, _ in before)


async def test_none_is_made_while_memory_is_short(tmp_path: Path) -> None:
    asked: list[bool] = []

    def enough() -> bool:
        asked.append(True)
        return False

    spawner = StandbySpawner(tmp_path / "log", settle=0, enough_memory=enough)
    spawner.prepare(Bench(tmp_path).command())
    await until(lambda: bool(asked))
    assert spawner.pid is None
    await spawner.close()


async def test_other_ways_to_start_leave_it_alone(bench: Bench) -> None:
    pid = await bench.waiting()
    process = await bench.start(bench.command("two", **{START_VARIABLE: "fork"}))
    assert process.pid != pid
    assert bench.spawner.pid == pid


async def test_stopping_while_it_waits_for_the_imports_leaves_nothing(bench: Bench) -> None:
    bench.spawner.prepare(bench.command(SMALL_STANDBY="slow"))
    await until(lambda: bench.spawner.pid is not None)
    pid = bench.spawner.pid
    assert pid is not None
    starting = asyncio.create_task(bench.spawner.spawn(bench.command(SMALL_STANDBY="slow")))
    await until(lambda: bench.spawner.pid is None)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert session_members(pid) == []


async def test_a_supervised_engine_revives_through_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.engine.supervisor.FIRST_BACKOFF", 0.1)
    settings = ServeSettings(store=bench.directory, base="b", start_timeout=20, stop_timeout=0.5)
    engine = SupervisedEngine(
        settings,
        "b",
        lambda: Capacity(8, 8, 16),
        lambda _, engine_id: bench.command(engine_id),
        bench.spawner,
    )
    await engine.start()
    try:
        first = engine.status().pid
        assert first is not None
        pid = await bench.waiting()
        os.kill(first, signal.SIGKILL)
        await until(lambda: engine.restarts == 1 and engine.status().state is EngineState.READY)
        assert engine.status().pid == pid
        assert session_members(first) == []
        # Under the id of the new run: leases of the dead one must not look like its own.
        assert (bench.directory / f"{engine.status().id}.log").exists()
    finally:
        await engine.stop()


SERVER = """
import asyncio, os, sys
from pathlib import Path
import server.engine.standby as module
from tests.server.engine.test_standby import SMALL, Bench
async def main():
    module.LAUNCH_MODULE = SMALL
    bench = Bench(Path(sys.argv[1]))
    await bench.waiting()
    engine = await bench.start(bench.command("two"))
    waiting = await bench.waiting()
    print(engine.pid, waiting, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_a_killed_server_leaves_neither_engine_nor_standby(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert server.stdout is not None
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 2
    server.kill()
    server.wait()
    deadline = time.monotonic() + 10
    while alive := [pid for pid in pids if _living(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)
    # The child that small_engine starts is its own affair; vLLM's are tied to their parents.
    for pid in pids:
        for child in session_members(pid):
            os.kill(child, signal.SIGKILL)


def _living(pid: int) -> bool:
    return pid in session_members(pid)
