"""A real HTTP server on loopback that behaves as a test tells it to, once for each request."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Answer = Callable[["Request"], None]


class Request(http.server.BaseHTTPRequestHandler):
    """One request, with what most answers need."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        web = self.server
        assert isinstance(web, _Server)
        web.seen.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        answers = web.answers.get(path, [lambda request: request.reply(404)])
        # The last answer stays.
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            answer(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; `Content_Length=""` leaves the length out and closes."""
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | given).items():
            if value:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are what is being tested

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answers: dict[str, list[Answer]] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []


@dataclass
class Web:
    """The server's address, its answers by path, and what it was asked."""

    url: str
    answers: dict[str, list[Answer]]
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def serve(self, path: str, *answers: Answer) -> str:
        """Sets the answers of a path, one after another; returns its URL."""
        self.answers[path] = list(answers)
        return self.url + path


@contextlib.contextmanager
def web_server(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    server = _Server()
    if tls is not None:
        # The handshake in the request's thread: one that fails is not the server's business.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        port = server.server_address[1]
        scheme = "http" if tls is None else "https"
        yield Web(f"{scheme}://127.0.0.1:{port}", server.answers, server.seen)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def body(content: bytes, **headers: str) -> Answer:
    """The content, whole."""
    return lambda request: request.reply(200, content, **headers)


def status(code: int, **headers: str) -> Answer:
    return lambda request: request.reply(code, b"", **headers)


def redirect(location: str, code: int = 302) -> Answer:
    return lambda request: request.reply(code, b"", Location=location)


def cut(content: bytes, after: int, etag: str | None) -> Answer:
    """Announces everything and hangs up after a part; from a Range on, if it is asked for one."""

    def answer(request: Request) -> None:
        begin_at = ranged(request, etag)
        part = content[begin_at : begin_at + after]
        headers = {"Content_Length": str(len(content) - begin_at)}
        if etag is not None:
            headers["ETag"] = etag
        if begin_at:
            headers["Content_Range"] = f"bytes {begin_at}-{len(content) - 1}/{len(content)}"
        request.reply(206 if begin_at else 200, part, **headers)

    return answer


def ranged(request: Request, etag: str | None) -> int:
    wanted = request.headers.get("Range")
    if wanted is None or etag is None or request.headers.get("If-Range") != etag:
        return 0
    return int(wanted.removeprefix("bytes=").rstrip("-"))


def slowly(content: bytes, pause: float) -> Answer:
    """A byte at a time."""

    def answer(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        for index in range(len(content)):
            request.wfile.write(content[index : index + 1])
            request.wfile.flush()
            time.sleep(pause)

    return answer
