"""Work of `quantize`, in a child process: `server` never imports it, nor torch.

parent                            child (quantize.job)
stdin:  one line, the order  ->
stdout: one JSON a line      <-   {"step"}, {"progress"}, then {"result"} or {"error"}
stdin closed                 ->   stop; what is half done stays hidden
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, Any

from adapters.errors import AdapterctlError, error_classes
from server.cli.backend import Watch

# Longer than the child's own grace.
_STOP_S = 25.0
_TAIL_BYTES = 20_000


def run_job(order: dict[str, Any], watch: Watch) -> Any:
    """Run one order to its end and return its result; the child never outlives this call.

    Raises the AdapterctlError that the child reports, and RuntimeError with the child's last
    words when it fails in another way.
    """
    with tempfile.TemporaryFile() as complaint:
        child = subprocess.Popen(
            # Safe path: a directory called `adapters` in the working directory is not ours.
            [sys.executable, "-P", "-m", "quantize.job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for this process, which then stops its child.
            start_new_session=True,
        )
        try:
            return _followed(child, order, watch, complaint)
        finally:
            _stop(child)


def _followed(
    child: subprocess.Popen[str], order: dict[str, Any], watch: Watch, complaint: IO[bytes]
) -> Any:
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    # A child that is dead already has closed the pipe; its output's end tells how it ended.
    with suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order) + "\n")
        child.stdin.flush()
    for line in child.stdout:
        event = json.loads(line)
        if "step" in event:
            watch.step(event["step"])
        elif "progress" in event:
            watch.progress(*event["progress"])
        elif "result" in event:
            return event["result"]
        else:
            raise _error(event["error"])
    raise _death(child.wait(), complaint)


def _stop(child: subprocess.Popen[str]) -> None:
    """Ends the child: orderly by its closed stdin, else by force. A second Ctrl-C is as good."""
    assert child.stdin is not None and child.stdout is not None, "both are pipes"
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        child.wait(_STOP_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
    child.stdout.close()


def _death(code: int, complaint: IO[bytes]) -> Exception:
    if code < 0:
        return AdapterctlError(
            f"the process that did the work was killed by signal {-code}: most likely this machine "
            "has too little free memory for it; run the same command again to go on"
        )
    size = complaint.seek(0, 2)
    complaint.seek(max(0, size - _TAIL_BYTES))
    said = complaint.read().decode(errors="replace").strip()
    return RuntimeError(f"the process that did the work ended with {code}:\n{said}")


def _error(body: dict[str, Any]) -> AdapterctlError:
    for cls in error_classes():
        if cls.code == body["code"]:
            return cls(body["message"], param=body.get("param"))
    return AdapterctlError(body["message"])
