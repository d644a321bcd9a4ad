"""One piece of work with tensors, for the gateway: `python -m server.cli.worker`.

Reads one order from stdin, writes events to stdout, a JSON document a line: {"step": text},
{"progress": [done, total]}, at last {"audited": rows}, how many the audit log got,
and {"result": document} or {"error": body}. A closed stdin is
the order to stop.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from adapters.audit import Origin
from adapters.errors import AdapterctlError
from adapters.models import Registered
from server.cli.backend import Watch
from server.cli.local import LocalBackend
from server.gateway.admin_models import ComposeRequest

# How long the work gets to clean up after it was told to stop. Importing torch is not broken off
# (adapters.registry.interrupts), and on a busy machine that alone takes many seconds.
_GRACE_S = 20.0


def main() -> None:
    """Run the order on stdin."""
    events = _own_stdout()
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    # The engine serves while we read: it goes first.
    os.nice(5)
    said = order.get("origin")
    origin = Origin("server") if said is None else Origin(**said)
    try:
        answer: dict[str, Any] = {"result": _run(order, origin, events)}
    except AdapterctlError as error:
        answer = error.body()
    except KeyboardInterrupt:
        sys.exit(1)
    # Before the answer, after which nobody reads on.
    _write(events, {"audited": origin.rows})
    _write(events, answer)


def _run(order: dict[str, Any], origin: Origin, events: IO[str]) -> Any:
    arguments = order["arguments"]
    watch = Watch(
        step=lambda text: _write(events, {"step": text}),
        progress=lambda done, total: _write(events, {"progress": [done, total]}),
    )
    backend = LocalBackend(Path(order["store"]), actor=order["actor"], origin=origin)
    try:
        match order["operation"]:
            case "base_add":
                answer: Any = backend.base_add(**arguments, watch=watch)
            case "register":
                answer = backend.register(**arguments, watch=watch)
            case "inspect":
                answer = backend.inspect(**arguments, watch=watch)
            case "compose":
                answer = _compose(backend, ComposeRequest.model_validate(arguments), watch)
            case "verify":
                answer = backend.verify(watch)
            case other:
                raise AssertionError(f"no operation {other}")
    finally:
        backend.close()
    return answer.model_dump(mode="json")


def _compose(backend: LocalBackend, order: ComposeRequest, watch: Watch) -> Registered:
    return backend.compose(
        order.parts,
        order.recipe,
        name=order.name,
        tag=order.tag,
        dry_run=order.dry_run,
        watch=watch,
    )


def _own_stdout() -> IO[str]:
    """The pipe to the gateway; whatever a library prints goes to stderr from now on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.basicConfig(stream=sys.stderr)
    return events


def _write(events: IO[str], event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


def _stop_with_parent() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(_GRACE_S)
    # Deep in a library that ignores the signal. What is left in staging, gc removes.
    os._exit(1)


if __name__ == "__main__":
    main()
