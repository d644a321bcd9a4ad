"""The server that runs on a store, found by the file it leaves there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from adapters.store.layout import StoreLayout


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A live process and the URL under which this machine reaches it."""

    pid: int
    url: str


def find_server(root: Path) -> RunningServer | None:
    """The server of the store at `root`; None if none runs (a killed one leaves its file)."""
    try:
        text = (StoreLayout(root).run / "server.json").read_text(encoding="utf-8")
        document = json.loads(text)
        server = RunningServer(int(document["pid"]), str(document["url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return server if _alive(server.pid) else None


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
