"""An engine cannot outlive the server, however the server dies."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

# A parent that ties a child to itself as the launcher does, says the child's id, and waits.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}, str({pid})])
print(child.pid, flush=True)
time.sleep(600)
"""
CHILD = """
import os, sys
from server.engine.launch import die_with_parent
die_with_parent(int(sys.argv[1]))
code = "import time; print('up', flush=True); time.sleep(600)"
os.execv(sys.executable, [sys.executable, "-c", code])
"""


def start(pid: str) -> tuple[subprocess.Popen[str], int]:
    source = PARENT.format(child=CHILD, pid=pid)
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_the_child_dies_when_its_parent_is_killed_even_after_an_exec() -> None:
    parent, child = start("__import__('os').getpid()")
    assert parent.stdout is not None
    assert parent.stdout.readline() == "up\n"
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    assert gone(child, 5)


def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    parent, child = start("1")
    assert gone(child, 10)
    parent.kill()
    parent.wait()
