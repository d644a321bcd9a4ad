"""Processes forked ahead of time, used through multiprocessing; nothing of vLLM is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.vllm_plugin import forking

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("forked_program.py")


def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def lines_of(program: subprocess.Popen[str]) -> list[dict[str, Any]]:
    output, _ = program.communicate(timeout=60)
    assert program.returncode == 0, output
    return [json.loads(line) for line in output.splitlines()]


def test_core_and_worker_are_forked_with_what_was_imported() -> None:
    program = run("serve")
    server, core, worker = sorted(lines_of(program), key=lambda line: int(line["depth"]))
    # The parents are those that vLLM's own processes have: server, core, worker.
    assert server["pid"] == program.pid
    assert core["parent"] == server["pid"]
    assert worker["parent"] == core["pid"]
    # Made before the server's work, with its imports and not with what came after.
    assert [line["imported"] for line in (server, core, worker)] == [True] * 3
    assert [line["later"] for line in (server, core, worker)] == [True, False, False]
    # The environment at the time of the start, as a spawned child has it.
    assert core["LOCAL_WORLD_SIZE"] == "1"
    assert worker["LOCAL_WORLD_SIZE"] == "2"
    # Descriptors and semaphores arrive: each answered over its pipe, under the lock it was given.
    assert core["pipe"] == "hello core"
    assert worker["pipe"] == "hello worker"
    assert core["main"] is False
    # Multiprocessing's view of them.
    assert server["alive_before"] is True
    assert server["exit_codes"] == [7]
    assert core["exit_codes"] == [7]
    # What was registered for the end of the interpreter runs there too.
    assert {line["ended"] for line in (core, worker)} == {True}


def test_the_worker_alone_is_bound() -> None:
    first = min(os.sched_getaffinity(0))
    lines = sorted(lines_of(run("serve", PIN=str(first))), key=lambda line: int(line["depth"]))
    everywhere = sorted(os.sched_getaffinity(0))
    assert [line["cpus"] for line in lines] == [everywhere, everywhere, [first]]


def test_another_environment_means_a_new_interpreter() -> None:
    server, core = sorted(lines_of(run("changed")), key=lambda line: int(line["depth"]))
    assert server["warned"] == ["child is started from nothing", "OMP_NUM_THREADS"]
    assert core["imported"] is False
    assert core["OMP_NUM_THREADS"] == "3"


def test_a_second_child_is_spawned() -> None:
    lines = sorted(lines_of(run("twice")), key=lambda line: int(line["depth"]))
    assert sorted(line["imported"] for line in lines if line["depth"] == 1) == [False, True]


@pytest.mark.parametrize("victim", [0, 1])
def test_killing_one_takes_those_below_along(victim: int) -> None:
    program = run("sleep")
    assert program.stdout is not None
    pids = {int(line["depth"]): int(line["pid"]) for line in _some(program, 3)}
    os.kill(pids[victim], signal.SIGKILL)
    below = [pids[depth] for depth in range(victim, 3)]
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if victim == 1:
        # Its parent noticed, by the sentinel as vLLM does, and ended.
        assert program.wait(timeout=10) == 0
    program.stdout.close()
    program.wait(timeout=10)


def test_children_nobody_needed_end_with_their_parent() -> None:
    program = run("unused")
    (line,) = _some(program, 1)
    assert program.wait(timeout=20) == 0
    deadline = time.monotonic() + 10
    while _runs(int(line["partner"])):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert program.stdout is not None
    program.stdout.close()


def _some(program: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert program.stdout is not None
    return [json.loads(program.stdout.readline()) for _ in range(count)]


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_differences_are_of_variables_that_imports_may_have_read() -> None:
    one = {"A": "1", "B": "2", "ADAPTERCTL_ENGINE_ID": "x"}
    assert forking.differences(one, {**one, "ADAPTERCTL_ENGINE_ID": "y"}) == []
    assert forking.differences(one, {**one, "LOCAL_WORLD_SIZE": "1"}) == []
    assert forking.differences(one, {"A": "2", "C": "3"}) == ["A", "B", "C"]
