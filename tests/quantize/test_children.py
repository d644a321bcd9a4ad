"""No child outlives the process that started it, and none its job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from quantize import children

_PARENT = """
import os, subprocess, sys, time
from quantize import children
child = children.start(
    [sys.executable, "-c", "import time; time.sleep(600)"], environment=os.environ,
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int, seconds: float = 20) -> bool:
    """Has the process ended, or does it within some seconds?"""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            # A zombie has ended, too: whoever inherited it has to collect it.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_child_dies_with_a_parent_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
        assert gone(child)
    finally:
        parent.kill()
        parent.communicate()


def test_a_stopped_child_takes_its_own_children_along() -> None:
    nested = (
        "import subprocess as s; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    )
    child = children.start(
        [sys.executable, "-c", nested],
        environment=os.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    with child.stdout:
        grandchild = int(child.stdout.readline())
        children.stop(child)
    assert child.returncode == -signal.SIGTERM
    assert gone(grandchild)
    children.stop(child)  # once more does nothing
