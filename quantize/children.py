"""Child processes of a job: none outlives it, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantize.merging.merge import Watcher

# Becomes the command, which then dies with us: prctl(2), PR_SET_PDEATHSIG with SIGKILL, outlasts
# exec. Not in a preexec_fn: after a fork of a process with threads no Python may run. The parent
# may be gone before the call, hence the comparison.
_LAUNCH = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() == int(sys.argv[1]):\n"
    "    os.execv(sys.argv[2], sys.argv[2:])\n"
)
# How long a child gets after SIGTERM.
_GRACE_S = 10.0


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    directory: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one, in a session of its own (Ctrl-C is for this one).

    It works in `directory` (None: where this one does).

    `command` begins with the program's path. On Linux the kernel kills it when the thread that
    started it ends, so call this from the thread that waits for it.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command],
        env=dict(environment),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=directory,
        start_new_session=True,
    )


def follow(
    child: subprocess.Popen[bytes], order: dict[str, Any], watch: Watcher
) -> dict[str, Any] | None:
    """Hand the order over, a line of JSON, and tell `watch` of {"step"} and {"progress"}.

    Returns the event that comes after them, {"result"} or {"error"}; None for a child that ended
    without one.
    """
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    # A child that is dead already has closed the pipe; its output's end tells how it ended.
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
    for event in _events(child.stdout):
        if "step" in event:
            watch.step(event["step"])
        elif "progress" in event:
            watch.progress(*event["progress"])
        else:
            return event
    return None


def _events(stdout: IO[bytes]) -> Iterable[dict[str, Any]]:
    for line in stdout:
        # The last line of a process that was killed may be half of one.
        with suppress(ValueError):
            yield json.loads(line)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the child if it still runs: asked first, then by force."""
    if child.poll() is not None:
        return
    # Its session, hence the processes that it started itself, too.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def tail(log: IO[bytes], size: int = 20_000) -> str:
    """The last words in a log file that is open for reading."""
    with suppress(OSError):
        log.seek(max(0, log.seek(0, 2) - size))
    return log.read().decode(errors="replace").strip()
