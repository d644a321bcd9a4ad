"""One connection to an admin API: requests, progress events, errors put back into classes."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from adapters.errors import AdapterctlError, ServerUnreachable, UsageError, error_classes
from server.cli.backend import Watch
from server.running import trusting

PREFIX = "/admin/v1"
EVENTS = "application/x-ndjson"
CONNECT_TIMEOUT = 5.0
# Long work sends an event at least every few seconds; this long a silence means it is gone.
ANSWER_TIMEOUT = 300.0


class AdminConnection:
    """Talks to `url` (http or https, an optional path before /admin/v1), one request at a time."""

    def __init__(self, url: str, key: str | None, certificate: Path | None = None) -> None:
        """`certificate`: the file that a server of this machine says it serves HTTPS with."""
        parts = _split(url)
        self.url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/") + PREFIX
        self._headers = {"Accept": "application/json"}
        if key is not None:
            if not key.isascii() or not key.isprintable():
                raise UsageError("ADAPTERCTL_KEY holds characters that no key has: copy it again")
            self._headers["Authorization"] = f"Bearer {key}"
        self._connection: http.client.HTTPConnection
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            with self._translated():
                context = trusting(certificate)
            self._connection = http.client.HTTPSConnection(
                host, port, timeout=CONNECT_TIMEOUT, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT)

    def close(self) -> None:
        self._connection.close()

    def renew(self) -> None:
        """Leaves an answer that was not read to its end: the next request gets a connection."""
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request, its JSON answer; an error document is raised as the class it names."""
        with self._translated():
            try:
                response = self._send(method, path, body, self._headers)
                status, raw = response.status, response.read()
            except KeyboardInterrupt:
                # What follows a Ctrl-C may have to be told to the server.
                self.renew()
                raise
            return self._document(status, raw)

    def work(self, path: str, body: Any, watch: Watch) -> Any:
        """POST something that takes long; events go to `watch`, the final document is returned."""
        with self._translated():
            response = self._send("POST", path, body, {**self._headers, "Accept": EVENTS})
            if not (response.getheader("Content-Type") or "").startswith(EVENTS):
                return self._document(response.status, response.read())
            for line in _until_gone(response):
                event = self._json(line)
                if "step" in event:
                    watch.step(str(event["step"]))
                elif "progress" in event:
                    done, total = event["progress"]
                    watch.progress(int(done), int(total))
                elif "result" in event:
                    return event["result"]
                elif "error" in event:
                    raise _error(event)
        raise ServerUnreachable(
            f"{self.url} went away in the middle of the work: look at its log, then run it again"
        )

    def upload(self, path: str, chunks: Iterable[bytes], size: int, watch: Watch) -> Any:
        """POST `size` bytes as they come from `chunks`; the JSON answer.

        The connection is not used again if something fails in the middle.
        """
        headers = {
            **self._headers,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size),
        }
        with self._translated():
            connection = self._connected()
            try:
                # A server that refuses does so at once and hangs up: its answer says why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    body = _told(chunks, size, watch)
                    connection.request("POST", self._prefix + path, body, headers)
                response = connection.getresponse()
                return self._document(response.status, response.read())
            except BaseException:
                # A body that ends early is no request: to the server the client hung up.
                connection.close()
                raise

    def _connected(self) -> http.client.HTTPConnection:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
            _set_timeout(connection, ANSWER_TIMEOUT)
        return connection

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        connection = self._connected()
        payload = None if body is None else json.dumps(body).encode()
        if payload is not None:
            headers = {**headers, "Content-Type": "application/json"}
        connection.request(method, self._prefix + path, payload, headers)
        return connection.getresponse()

    def _document(self, status: int, raw: bytes) -> Any:
        document = self._json(raw)
        if status < 400:
            return document
        if isinstance(document, dict) and isinstance(document.get("error"), dict):
            raise _error(document)
        raise ServerUnreachable(f"{self.url} answers HTTP {status}: is it an adapterctl server?")

    def _json(self, raw: bytes) -> Any:
        try:
            return json.loads(raw)
        except ValueError:
            raise ServerUnreachable(
                f"{self.url} does not answer as an adapterctl server does: check the URL"
            ) from None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise ServerUnreachable(f"{self.url} does not answer in time") from None
        except ssl.SSLError as error:
            raise ServerUnreachable(
                f"no TLS connection to {self.url}: {error.reason or error}"
            ) from None
        except socket.gaierror as error:
            raise ServerUnreachable(f"no such host in {self.url}: {error.strerror}") from None
        except ConnectionRefusedError:
            raise ServerUnreachable(
                f"nothing listens at {self.url}: start one with 'adapterctl serve', "
                "or use --store for a store on this machine"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise ServerUnreachable(
                f"the connection to {self.url} broke: {reason or type(error).__name__}"
            ) from None


def _told(chunks: Iterable[bytes], size: int, watch: Watch) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        watch.progress(done, size)


def _until_gone(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of an answer; a server that is gone may show as its end or as a reset."""
    try:
        yield from response
    except (ConnectionError, http.client.IncompleteRead):
        return


def _set_timeout(connection: http.client.HTTPConnection, seconds: float) -> None:
    """For reads from now on; the one it was made with was for connecting."""
    assert connection.sock is not None, "called on an open connection"
    connection.sock.settimeout(seconds)


def _split(url: str) -> Any:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        parts.port  # noqa: B018  raises for a port that is no number
    except ValueError:
        usable = False
    if not usable or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"'{url}' is no server URL: give http://HOST:PORT")
    return parts


def _error(document: dict[str, Any]) -> AdapterctlError:
    """The class whose code the document carries, with its sentence."""
    body = document["error"]
    code, message = body.get("code"), str(body.get("message"))
    for cls in error_classes():
        if cls.code == code:
            return cls(message, param=body.get("param"))
    return AdapterctlError(message, param=body.get("param"))
