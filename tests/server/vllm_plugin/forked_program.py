"""A small program in vLLM's place: server, core and worker, as forking.py makes them.

It prints one line of JSON for each process. What it does is its argument (see test_forking.py).
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Lock
from typing import Any

from server.vllm_plugin import forking

IMPORTED: list[bool] = []
LATER: list[bool] = []
CONTEXT = forking.ForkedContext()


def facts(depth: int) -> dict[str, Any]:
    return {
        "depth": depth,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "imported": bool(IMPORTED),
        "later": bool(LATER),
        "main": multiprocessing.parent_process() is None,
        "cpus": sorted(os.sched_getaffinity(0)),
        "LOCAL_WORLD_SIZE": os.environ.get("LOCAL_WORLD_SIZE"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def say(line: dict[str, Any]) -> None:
    # One write, so that lines of several processes do not mix.
    os.write(1, json.dumps(line).encode() + b"\n")


def child(depth: int, pipe: Connection, lock: Lock, what: str) -> None:
    """Core (depth 1) or worker (depth 2)."""
    line = facts(depth)
    with lock:
        line["pipe"] = pipe.recv()
    if depth == 1 and what in {"serve", "sleep"}:
        line.update(parent_of("worker", 2, what))
    if what == "sleep":
        if depth == 2:
            say(line)
        time.sleep(600)
    line["ended"] = False
    atexit.register(lambda: say({**line, "ended": True}))
    sys.exit(7)


def parent_of(name: str, depth: int, what: str) -> dict[str, Any]:
    """Start a child, talk to it, and see it end."""
    os.environ["LOCAL_WORLD_SIZE"] = str(depth)
    ours, theirs = CONTEXT.Pipe()
    lock = CONTEXT.Lock()  # gone with its last reference here, whoever else has it
    process = CONTEXT.Process(
        target=child, args=(depth, theirs, lock, what), name="child", daemon=depth == 2
    )
    process.start()
    theirs.close()
    alive = process.is_alive()
    ours.send(f"hello {name}")
    if what == "sleep":
        say(facts(depth - 1))
    wait([process.sentinel])
    process.join()
    return {"alive_before": alive, "exit_codes": [process.exitcode]}


class Warnings(logging.Handler):
    seen: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def main(what: str) -> None:
    IMPORTED.append(True)
    pinned = {int(os.environ["PIN"])} if "PIN" in os.environ else os.sched_getaffinity(0)
    forking.fork_chain([dict(os.environ), dict(os.environ)], pinned)
    LATER.append(True)
    line = facts(0)
    warnings = Warnings()
    logging.getLogger("vllm.adapterctl.forking").addHandler(warnings)
    if what == "unused":
        assert forking._partner is not None
        say({"partner": forking._partner.pid})
        return
    if what == "changed":
        os.environ["OMP_NUM_THREADS"] = "3"
    line.update(parent_of("core", 1, what))
    if what == "twice":
        parent_of("core", 1, what)
    if what == "changed":
        (said,) = warnings.seen
        line["warned"] = [said.partition(",")[0], said.rpartition("(")[2].rstrip(")")]
    if what != "sleep":
        say(line)


if __name__ == "__main__":
    main(sys.argv[1])
