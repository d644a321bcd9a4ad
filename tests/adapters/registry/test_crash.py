"""SIGKILL at every step of registering, repairing, collecting and making a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("crash_child.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def scratch() -> Iterator[Path]:
    # In memory where there is such a place: a SIGKILL is the same there, and hundreds of fsyncs
    # are not. What an fsync is for, a power cut, no test can make; test_publish checks their order.
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="adapterctl-crash-", dir=place) as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    ("action", "stride", "least"),
    [("register", 1, 60), ("repair", 1, 60), ("gc", 1, 30), ("init", 5, 10)],
)
def test_a_kill_at_any_step_loses_nothing(
    action: str, stride: int, least: int, scratch: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(CHILD), str(scratch), action, str(stride)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["killed"] >= least, summary
    if action in ("register", "init"):
        # Kills on both sides of the commit, or the kill points do not reach what they should.
        assert summary["before"] > 0 and summary["after"] > 0, summary
