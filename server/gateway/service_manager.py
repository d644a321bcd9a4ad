"""Telling systemd how the server is, by its notification protocol (sd_notify(3)).

`Type=notify` in deploy/systemd: the unit counts as started when the engine is ready, and `systemctl
status` says what the server is doing. Without systemd there is no socket, and nothing happens.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_VARIABLE = "NOTIFY_SOCKET"

READY = "READY=1"
STOPPING = "STOPPING=1"


def notify(*states: str, status: str | None = None) -> None:
    """Sends the states (`READY=1`, …) and a line for people; never raises."""
    address = os.environ.get(_VARIABLE, "")
    if not address.startswith(("/", "@")):
        return
    lines = [*states, *([f"STATUS={status}"] if status is not None else [])]
    # A leading @ is an abstract socket, whose name begins with NUL.
    where = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # Whoever manages the service reads it at once; if not, that is no reason to wait.
        sender.setblocking(False)
        sender.connect(where)
        sender.send("\n".join(lines).encode())
