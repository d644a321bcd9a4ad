"""Runs one driver in a tool's own environment: `python child.py DRIVER`.

Only the standard library can be counted on here. Reads one JSON order from stdin, writes events to
stdout, a JSON document a line: {"step": text}, {"progress": [done, total]}, at last {"result": …}
or {"error": {"message": …}}. What a library prints goes to stderr, which is the log.

A driver is a file with `quantize(order, tell) -> dict`; `tell(event)` sends an event, and the dict
is the result, to which the peak memory is added.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Tell = Callable[[dict[str, Any]], None]


def main(driver: str) -> int:
    """Run the order on stdin with the driver in the file `driver`."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    order = json.loads(sys.stdin.buffer.readline())
    try:
        result = _loaded(driver).quantize(order, tell)
    except Exception as fault:  # noqa: BLE001 - whatever a tool raises is told in one line
        traceback.print_exc()
        said = str(fault).strip().splitlines()
        tell({"error": {"message": f"{type(fault).__name__}: {said[0]}" if said else repr(fault)}})
        return 1
    tell({"result": {**result, "peak_rss": peak_rss()}})
    return 0


def peak_rss() -> int:
    """Bytes. Not getrusage: its figure is inherited from the process that started this one."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _loaded(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("driver", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    # Threads of a tool must not hold up, nor crash, an exit when all is written.
    os._exit(code)
