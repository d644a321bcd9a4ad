"""Of engines that take turns one runs, and all of them afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from loadtests.compare.taking_turns import Turns

# An engine's first process and one of its own.
_SESSION = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


class Session:
    """Two processes that lead, and are of, a session."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SESSION], stdin=subprocess.PIPE, start_new_session=True
        )
        self.id = self.process.pid

    def is_stopped(self, expected: bool) -> bool:
        """Whether all of it is, or none; a signal takes a moment."""
        processes = self.all(psutil.Process(self.id))
        for _ in range(200):
            states = {one.status() == psutil.STATUS_STOPPED for one in processes}
            if states == {expected}:
                return expected
            time.sleep(0.01)
        raise AssertionError(f"stopped: {states}")

    @staticmethod
    def all(leader: psutil.Process) -> list[psutil.Process]:
        while not (children := leader.children()):
            time.sleep(0.01)
        return [leader, *children]


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    found = [Session(), Session()]
    for one in found:
        one.all(psutil.Process(one.id))
    yield found
    for one in found:
        one.process.communicate(b"\n", timeout=10)


def test_one_runs_at_a_time(sessions: list[Session]) -> None:
    one, other = sessions
    turns = Turns([one.id, other.id])
    with turns.begun():
        assert one.is_stopped(True) and other.is_stopped(True)
        with turns.of(one.id):
            assert not one.is_stopped(False) and other.is_stopped(True)
        with turns.of(other.id):
            assert one.is_stopped(True) and not other.is_stopped(False)
    assert not one.is_stopped(False) and not other.is_stopped(False)


def test_a_round_that_fails_leaves_none_stopped(sessions: list[Session]) -> None:
    turns = Turns([one.id for one in sessions])
    with pytest.raises(RuntimeError), turns.begun(), turns.of(sessions[0].id):
        raise RuntimeError
    assert not any(one.is_stopped(False) for one in sessions)
