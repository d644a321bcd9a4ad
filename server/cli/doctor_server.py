"""Checks of the server that runs on a store, or of the place where one would listen."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from server.gateway.admin_models import Check
from server.running import RunningServer, find_server, trusting

_TIMEOUT_S = 5.0


def server(root: Path) -> Iterator[Check]:
    """Health and readiness of the running server; without one, whether its port is free."""
    running = find_server(root)
    if running is None:
        yield Check(check="server", state="ok", found="no server is running on this store")
        yield _port()
        return
    alive = _ask(running, "/healthz")
    if alive is None or alive[0] != http.client.OK:
        yield Check(
            check="server",
            state="problem",
            found=f"process {running.pid} is there, but {running.url} does not answer",
            fix="look at its output; stop it and start it again",
        )
        return
    yield Check(check="server", state="ok", found=f"{running.url} answers (process {running.pid})")
    yield _engine(running, root)


def _engine(running: RunningServer, root: Path) -> Check:
    ready = _ask(running, "/readyz")
    if ready is not None and ready[0] == http.client.OK:
        return Check(check="engine", state="ok", found="ready")
    return Check(
        check="engine",
        state="warning",
        found=_message(ready[1]) if ready is not None else "no answer about its state",
        fix=f"wait if it is starting; its log is {root / 'logs' / 'engine.log'}",
    )


def _port() -> Check:
    from server.settings import ServeSettings

    host = str(ServeSettings.model_fields["host"].default)
    port = int(ServeSettings.model_fields["port"].default)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                check="port",
                state="warning",
                found=f"{host}:{port} cannot be listened on: {error.strerror}",
                fix="serve with another --port, or stop what listens there",
            )
    return Check(check="port", state="ok", found=f"{host}:{port} is free")


def _ask(running: RunningServer, path: str) -> tuple[int, bytes] | None:
    address = urlsplit(running.url)
    host, port = address.hostname or "", address.port
    connection: http.client.HTTPConnection
    try:
        if address.scheme == "https":
            context = trusting(running.certificate)
            connection = http.client.HTTPSConnection(
                host, port, timeout=_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    except OSError:
        return None  # Its certificate cannot be read.
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(65536)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "not ready"
