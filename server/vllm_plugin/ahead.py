"""A thread of vLLM's worker reads adapters while the worker computes; a step only takes them over.

The API server orders (`ordering.py`) on a socket of its own: what goes through the engine core,
as vLLM's add_lora does, waits for the step that runs, and then every stream waits for the load.

One order a line, one answer a line: {"id", "name", "path"} -> {"id", "error": null | text,
"proved": bool}. `proved` says that nothing can go wrong any more when it is copied into a slot.
{"gone": id} follows, unasked, once the worker does not have the adapter any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from server.vllm_plugin.patches import PROVED

logger = logging.getLogger("vllm.adapterctl.ahead")

# Adapters that were read and that no step has taken over yet.
KEPT = 16


class Ahead:
    """Reads for one manager. `take` and `is_there` may be called in any thread."""

    def __init__(
        self,
        read: Callable[[LoRARequest], Any],
        is_resident: Callable[[int], bool],
        told: Callable[[str, float], None],
    ):
        """`read`: the manager's _load_adapter; `is_resident`: whether it has this id already;
        `told` is told the name and the seconds of each that was read here."""
        self._read = read
        self._is_resident = is_resident
        self._told = told
        self._lock = threading.Lock()
        self._ready: OrderedDict[int, tuple[str, Any]] = OrderedDict()
        self._reading: dict[int, threading.Event] = {}
        self._connection: socket.socket | None = None
        self._sending = threading.Lock()
        self._listener: socket.socket | None = None

    def listen(self) -> str:
        """Begin, in a thread that ends with the process; the socket's path."""
        directory = Path(tempfile.mkdtemp(prefix="adapterctl-"))
        path = directory / "ahead.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, args=(path,), name="ahead", daemon=True).start()
        return str(path)

    def ready(self) -> dict[int, str]:
        """Ids and names of what was read and not taken over yet, oldest first."""
        with self._lock:
            return {number: name for number, (name, _) in self._ready.items()}

    def take(self, number: int) -> tuple[Any, bool] | None:
        """What was read ahead, and whether it was there at once; None where nothing was."""
        with self._lock:
            found = self._ready.pop(number, None)
            event = self._reading.get(number)
        if found is not None:
            return found[1], True
        if event is None:
            return None
        event.wait()
        with self._lock:
            found = self._ready.pop(number, None)
        return None if found is None else (found[1], False)

    def gone(self, number: int) -> None:
        """Tell that the worker has this adapter no more. Never waits, never raises."""
        self._send({"gone": number})

    def _serve(self, path: Path) -> None:
        # vLLM ties the thread that made this one to a core of the engine's.
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
        # This thread's alone; vLLM has replaced torch.set_num_threads by nothing.
        torch._C.set_num_threads(1)
        assert self._listener is not None
        connection, _ = self._listener.accept()
        # Nobody else comes: there is one API server, and it ends with the engine.
        self._listener.close()
        path.unlink(missing_ok=True)
        path.parent.rmdir()
        self._connection = connection
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                self._send(self._order(json.loads(line)))
        self._connection = None

    def _order(self, order: dict[str, Any]) -> dict[str, Any]:
        number = int(order["id"])
        event = threading.Event()
        with self._lock:
            known = self._ready.get(number)
            if known is None:
                self._reading[number] = event
        try:
            if known is not None:
                return _answer(number, known[1])
            if self._is_resident(number):
                return {"id": number, "error": None, "proved": True}
            began = time.perf_counter()
            adapter = self._read(LoRARequest(order["name"], number, order["path"]))
            self._told(order["name"], time.perf_counter() - began)
            self._keep(number, order["name"], adapter)
            return _answer(number, adapter)
        # Whatever is wrong with one adapter is that adapter's; the thread goes on.
        except Exception as error:  # noqa: BLE001
            logger.warning("%s was not read: %s", order["name"], error)
            return {"id": number, "error": str(error) or type(error).__name__, "proved": False}
        finally:
            with self._lock:
                self._reading.pop(number, None)
            event.set()

    def _keep(self, number: int, name: str, adapter: Any) -> None:
        dropped = []
        with self._lock:
            # A step may have read it itself meanwhile.
            if not self._is_resident(number):
                self._ready[number] = (name, adapter)
            while len(self._ready) > KEPT:
                dropped.append(self._ready.popitem(last=False)[0])
        for one in dropped:
            self.gone(one)

    def _send(self, document: dict[str, Any]) -> None:
        connection = self._connection
        if connection is None:
            return
        line = json.dumps(document).encode() + b"\n"
        with self._sending:
            try:
                # A step may be what tells it: rather no connection than a wait.
                sent = connection.send(line, socket.MSG_DONTWAIT)
                if sent != len(line):
                    raise BlockingIOError("the API server does not read")
            except OSError as error:
                # It must hear which adapters go, or it relies on one that is not there. Without a
                # connection it relies on none.
                logger.warning("adapters are not read ahead any more: %s", error)
                self._connection = None
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _answer(number: int, adapter: Any) -> dict[str, Any]:
    return {"id": number, "error": None, "proved": bool(getattr(adapter, PROVED, False))}
