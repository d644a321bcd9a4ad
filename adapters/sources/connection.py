"""One HTTP request to an address that was checked before, with an end to every wait."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, quote

from adapters.sources.networks import allowed_addresses
from adapters.sources.policy import Policy

# Everything that means something in a path or query; what is left to quote is not ASCII.
_KEPT = "%/:=&?~#+!$,;'@()*[]|"


class _Pinned(http.client.HTTPConnection):
    """Connects to given addresses; the host's name serves for the certificate and the header."""

    def __init__(self, host: str, port: int, addresses: list[str], policy: Policy, *, tls: bool):
        super().__init__(host, port, timeout=policy.timeout)
        self._addresses = addresses
        self._tls = ssl.create_default_context() if tls else None

    def connect(self) -> None:
        connected = self._first_that_answers()
        # Set before the handshake: a server that stops in the middle of it is shut down, too.
        self.sock = connected
        if self._tls is not None:
            secured = self._tls.wrap_socket(
                connected, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = secured
            secured.do_handshake()

    def _first_that_answers(self) -> socket.socket:
        failure: OSError = OSError("it has no address")
        for address in self._addresses:
            try:
                return socket.create_connection((address, self.port), self.timeout)
            except OSError as fault:
                failure = fault
        raise failure


@contextmanager
def asking(
    parts: SplitResult, headers: Mapping[str, str], policy: Policy
) -> Iterator[http.client.HTTPResponse]:
    """GETs the URL, follows nothing; raises OSError or HTTPException for what fails on the way.

    Raises SourceRefused for an address that may not be connected to.
    """
    tls = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if tls else 80)
    addresses = allowed_addresses(host, port, plain=not tls, policy=policy)
    connection = _Pinned(host, port, addresses, policy, tls=tls)
    target = quote(f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", safe=_KEPT)
    try:
        with _deadline(connection, policy.timeout):
            connection.request("GET", target, headers=_sendable(headers))
            response = connection.getresponse()
        yield response
    finally:
        connection.close()


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    # `identity`: a compressed transfer could be neither resumed nor compared with a checksum.
    own = {"User-Agent": "adapterctl", "Accept": "*/*", "Accept-Encoding": "identity"}
    return {**own, "Connection": "close", **headers}


@contextmanager
def _deadline(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Ends a handshake or a header that drips in: each byte alone would come in time."""
    passed = threading.Event()

    def cut() -> None:
        passed.set()
        sock = connection.sock
        if sock is not None:
            try:
                # The plain one: TLS's own clears what the other thread is using.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already, which is all that was wanted

    # Connecting has the socket's own time-out, once for each address.
    timer = threading.Timer(2 * seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if passed.is_set():
            raise TimeoutError("timed out") from None
        raise
    finally:
        timer.cancel()
    if passed.is_set():
        # To the library a header that was cut off is a shorter header.
        raise TimeoutError("timed out")
