"""Runs a tool in its own environment and process.

parent                              child (quantizers/drivers/child.py with the tool's driver)
stdin:  one line, the order  ->
stdout: one JSON a line      <-     {"step"}, {"progress"}, then {"result"} or {"error"}
stderr                       <-     whatever the tool prints: the log
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapters.errors import ToolFailed
from quantize import children
from quantize.merging.merge import Watcher
from quantize.quantizers import drivers

# Keep freed memory for the next tensor: AWQ's search otherwise spends more time in page faults than
# in arithmetic (docs/quantize.md). Read by glibc, elsewhere without effect.
_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_ARENA_MAX": "1",
}
# Of Python, of the tools and of what they stand on.
_TOOLS_SETTINGS = ("PYTHON", "GPTQMODEL_", "AR_", "LLM_COMPRESSOR_", "HF_", "TRANSFORMERS_")


@dataclass(frozen=True, slots=True)
class Tool:
    """What a message calls the work and the tool, and the script that does it."""

    work: str
    name: str
    driver: Path


def own_threads() -> int:
    """How many threads a tool gets."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) else len(os.sched_getaffinity(0))


def drive(
    tool: Tool, python: Path, order: dict[str, Any], watch: Watcher, log: Path
) -> dict[str, Any]:
    """The driver's result for `order`; what the tool prints is added to the file `log`.

    KeyboardInterrupt ends the tool. Raises ToolFailed.
    """
    child_script = Path(drivers.__file__).parent / "child.py"
    with log.open("ab+") as complaint:
        child = children.start(
            # Isolated: nothing of adapterctl's environment, user's or working directory.
            [str(python), "-I", str(child_script), str(tool.driver)],
            environment=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            # Some tools write logs of their own to where they are.
            directory=log.absolute().parent,
        )
        try:
            return _followed(tool, child, order, watch, complaint)
        finally:
            children.stop(child)
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None, "both are pipes"
                with suppress(BrokenPipeError):
                    pipe.close()


def _environment() -> dict[str, str]:
    """Ours without what could change what the tool does."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_TOOLS_SETTINGS)
    }
    # Everything is a local directory: no tool may look a model up elsewhere.
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return _ALLOCATOR | kept | offline | {"OMP_NUM_THREADS": str(own_threads()), "PYTHONUTF8": "1"}


def _followed(
    tool: Tool,
    child: subprocess.Popen[bytes],
    order: dict[str, Any],
    watch: Watcher,
    log: IO[bytes],
) -> dict[str, Any]:
    event = children.follow(child, order, watch)
    if event is None:
        raise _death(tool, child.wait(), log)
    if "error" in event:
        raise ToolFailed(
            f"{tool.work} with {tool.name} failed: {event['error']['message']}; its log is "
            f"{log.name}"
        )
    return dict(event["result"])


def _death(tool: Tool, code: int, log: IO[bytes]) -> ToolFailed:
    if code < 0:
        return ToolFailed(
            f"{tool.name} was killed by signal {-code}: most likely this machine has too "
            f"little free memory; its log is {log.name}"
        )
    said = children.tail(log).splitlines()
    return ToolFailed(
        f"{tool.name} ended with {code}: {said[-1] if said else 'without a word'}; its log "
        f"is {log.name}"
    )
