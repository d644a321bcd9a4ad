"""One piece of work in a process of its own: `python -m quantize.job`.

Reads one order from stdin, writes events to stdout, a JSON document a line: {"step": text},
{"progress": [done, total]}, at last {"result": document} or {"error": body}. A closed stdin is
the order to stop.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from adapters.errors import AdapterctlError

# How long the work gets to clean up after it was told to stop; importing torch alone takes seconds.
_GRACE_S = 20.0
# Terminals and pipes need no more.
_INTERVAL_S = 0.1


def main() -> None:
    """Run the order on stdin."""
    events = _own_stdout()
    try:
        line = sys.stdin.buffer.readline()
        if not line:
            return  # told to stop before there was anything to do
        order = json.loads(line)
        threading.Thread(target=_stop_with_parent, daemon=True).start()
        # What is served meanwhile goes first.
        os.nice(5)
        _write(events, {"result": _run(order, events)})
    except AdapterctlError as error:
        _write(events, error.body())
    except KeyboardInterrupt:
        sys.exit(1)


def _run(order: dict[str, Any], events: IO[str]) -> Any:
    import torch

    from adapters.catalog import Catalog
    from quantize.merging.merge import Watcher, merge

    assert order["operation"] == "merge", "the only one there is"
    # Blocks are small: threads would wait for each other after every step, and on a machine that
    # serves meanwhile that is most of the time (measured with two: 30 s for 2.2 GB).
    torch.set_num_threads(1)
    out, nf4 = order["out"], order["nf4_checkpoint"]
    watch = Watcher(step=lambda text: _write(events, {"step": text}), progress=_sparing(events))
    with Catalog.open(Path(order["store"])) as catalog:
        merged = merge(
            catalog,
            order["reference"],
            None if out is None else Path(out),
            dtype=order["dtype"],
            base_weights=order["base_weights"],
            nf4_checkpoint=None if nf4 is None else Path(nf4),
            compare_base_weights=order["compare_base_weights"],
            watch=watch,
        )
    return merged.model_dump(mode="json")


def _sparing(events: IO[str]) -> Callable[[int, int], None]:
    """Tells of the progress some times a second, however often it is called."""
    told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done >= total or now - told >= _INTERVAL_S:
            told = now
            _write(events, {"progress": [done, total]})

    return progress


def _own_stdout() -> IO[str]:
    """The pipe to the parent; whatever a library prints goes to stderr from now on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(stream=sys.stderr)
    return events


def _write(events: IO[str], event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def _stop_with_parent() -> None:
    # Not through the buffer: a thread that holds its lock ends the interpreter's exit in a crash.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(_GRACE_S)
    # Deep in a library that ignores the signal. What is left can be gone on from.
    os._exit(1)


if __name__ == "__main__":
    main()
