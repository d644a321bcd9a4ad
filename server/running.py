"""The servers that run on a store, found by the files they leave there."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from ssl import SSLContext


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A live process and the URL under which this machine reaches it.

    `handover`: the unix socket at which it gives its port away; `certificate`: the file with which
    it proves over TLS that it is the one, whatever name is in it.
    """

    pid: int
    url: str
    handover: Path | None = None
    certificate: Path | None = None


def trusting(certificate: Path | None) -> SSLContext:
    """For a connection to the server that serves with this file, which a file of the store says:
    no name in it has to match. None: as every client does it."""
    import ssl

    if certificate is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    # The file need not reach up to an authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def find_servers(root: Path) -> list[RunningServer]:
    """The servers of the store at `root`, in the order of their process ids.

    Each leaves a file of its own; that of a killed one is passed over.
    """
    found = []
    for file in StoreLayout(root).run.glob("server-*.json"):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            server = RunningServer(
                int(document["pid"]),
                str(document["url"]),
                _path(document.get("handover")),
                _path(document.get("certificate")),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if _alive(server.pid):
            found.append(server)
    return sorted(found, key=lambda server: server.pid)


def find_server(root: Path) -> RunningServer | None:
    """One server of the store; None if none runs."""
    return next(iter(find_servers(root)), None)


def _path(said: object) -> Path | None:
    return Path(said) if isinstance(said, str) else None


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
