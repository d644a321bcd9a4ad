"""The command line against what is no adapterctl server, or one that fails in the middle."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from server.cli import http
from tests.server.cli.command_line import CommandLine


@contextlib.contextmanager
def answering(raw: bytes, *, hold: bool = False) -> Iterator[str]:
    """A server that answers every connection with `raw`, then closes it, or with `hold` waits."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(raw)
                if hold:
                    done.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)


def response(body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (response(b"<html>hello</html>", kind="text/html"), "check the URL"),
        (response(b"<html>gone</html>", status="404 Not Found"), "check the URL"),
        (response(b'{"detail": "Not Found"}', status="404 Not Found"), "HTTP 404"),
        (response(b'{"other": "shape"}'), "same version"),
        (response(b'[{"name": "x", "from": "the future"}]'), "same version"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "broke"),
        (b"", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[", "broke"),
    ],
)
def test_no_adapterctl_server(raw: bytes, says: str) -> None:
    with answering(raw) as url:
        code, error = CommandLine(("--server", url)).refused("ls")
    assert (code, error["code"]) == (1, "server_unreachable")
    assert says in error["message"]
    assert url in error["message"]


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    code, error = CommandLine(("--server", url)).refused("ls")
    assert (code, error["code"]) == (1, "server_unreachable")
    assert "adapterctl serve" in error["message"]


def test_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_TIMEOUT", 0.2)
    with answering(b"", hold=True) as url:
        code, error = CommandLine(("--server", url)).refused("ls")
    assert (code, error["code"]) == (1, "server_unreachable")
    assert "in time" in error["message"]


def test_work_that_breaks_off() -> None:
    events = b'{"step": "checking"}\n{"progress": [1, 2]}\n'
    with answering(response(events, kind="application/x-ndjson")) as url:
        answer = CommandLine(("--server", url))(
            "register", "x", "--on-server", "--name", "n", "--base", "b"
        )
    assert answer.code == 1
    first, last = answer.err.splitlines()
    assert first == "checking"
    assert last.startswith(f"adapterctl: {url} went away in the middle of the work")


def test_no_tls() -> None:
    with answering(response(b"[]")) as url:
        secure = url.replace("http://", "https://")
        code, error = CommandLine(("--server", secure)).refused("ls")
    assert (code, error["code"]) == (1, "server_unreachable")


def test_an_error_this_version_does_not_know() -> None:
    body = b'{"error": {"message": "from the future", "code": "brand_new", "param": null}}'
    with answering(response(body, status="418 Teapot")) as url:
        code, error = CommandLine(("--server", url)).refused("ls")
    assert (code, error["message"]) == (1, "from the future")
