"""A listening socket goes from one server to the next: no moment without somebody who listens.

Both have the same socket then, so a connection that is being made when the old server lets go of it
is taken by the new one. (Two sockets on one port, SO_REUSEPORT, lose those.) The new server asks on
a unix socket in the old one's private directory, gets the listening socket, starts its engine, and
only when it can answer does it say `stop`. If it dies before that, nothing has happened.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from server.running import find_servers

log = logging.getLogger(__name__)

_TAKE, _STOP = b"take\n", b"stop\n"
_ANSWER_WITHIN = 5.0
_UCRED = struct.Struct("3i")


@contextlib.contextmanager
def offered(listener: socket.socket, path: Path, taken: Callable[[], None]) -> Iterator[None]:
    """Give `listener` to whoever asks at `path`; `taken` is called, from a thread, when another
    server answers on it."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen(1)
        threading.Thread(target=_answer, args=(door, listener, taken), daemon=True).start()
        try:
            yield
        finally:
            # Wakes the thread out of its accept.
            with contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)


def _answer(door: socket.socket, listener: socket.socket, taken: Callable[[], None]) -> None:
    while True:
        try:
            connection, _ = door.accept()
        except OSError:
            return
        with connection:
            try:
                if _same_user(connection) and _given(connection, listener):
                    taken()
            except OSError as error:
                log.warning("a hand-over failed: %s", error.strerror or error)


def _same_user(connection: socket.socket) -> bool:
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return bool(_UCRED.unpack(peer)[1] == os.getuid())


def _given(connection: socket.socket, listener: socket.socket) -> bool:
    """Whether the other side has the socket and answers on it; may take as long as an engine."""
    if connection.recv(len(_TAKE), socket.MSG_WAITALL) != _TAKE:
        return False
    said = json.dumps({"port": listener.getsockname()[1]}).encode()
    socket.send_fds(connection, [said], [listener.fileno()])
    return connection.recv(len(_STOP), socket.MSG_WAITALL) == _STOP


class Taken:
    """A listening socket that another server has given away. `done` ends that server."""

    def __init__(self, listener: socket.socket, connection: socket.socket, pid: int):
        self.listener = listener
        self.pid = pid
        self._connection = connection

    def done(self) -> None:
        """This server answers on the socket now: the other one need not any more."""
        # It may have ended by itself meanwhile.
        with contextlib.suppress(OSError):
            self._connection.sendall(_STOP)
        self._connection.close()


def take(store: Path, port: int) -> Taken | None:
    """The socket of the server on the store that listens on `port` (0: of any); None: of none."""
    for server in find_servers(store):
        if server.handover is None or server.pid == os.getpid():
            continue
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_ANSWER_WITHIN)
        try:
            connection.connect(str(server.handover))
            connection.sendall(_TAKE)
            said, found, _, _ = socket.recv_fds(connection, 256, 1)
            listener = socket.socket(fileno=found[0]) if found else None
            if listener is not None and port in (0, json.loads(said)["port"]):
                listener.setblocking(False)
                return Taken(listener, connection, server.pid)
            if listener is not None:
                listener.close()
        except (OSError, ValueError) as error:
            log.warning("server %d gives its port to nobody: %s", server.pid, error)
        connection.close()
    return None
