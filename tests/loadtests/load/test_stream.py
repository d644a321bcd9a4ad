"""Answers that end as they should not, over a real socket, byte by byte.

In a process of its own: gevent's sockets are not to be mixed with the other tests' loops.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Serves each case's bytes once, closes, and prints what the client made of it.
_CHILD = """
import json, sys, time
from gevent import monkey; monkey.patch_all()
import gevent
from gevent.server import StreamServer
from loadtests.load.stream import Answer, Asker
event = b'data: {"choices":[{"delta":{"content":"a"}}]}\\n\\n'
last = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}'
done = b"data: [DONE]\\n\\n"
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n"
chunked = head + b"Transfer-Encoding: chunked\\r\\n\\r\\n"
closing = head + b"Connection: close\\r\\n\\r\\n"
def chunk(data): return b"%x\\r\\n" % len(data) + data + b"\\r\\n"
cases = {
    "whole": chunked + chunk(event) + chunk(done) + b"0\\r\\n\\r\\n",
    "split": chunked + b"".join(chunk(bytes([b])) for b in event + done) + b"0\\r\\n\\r\\n",
    "stops between chunks": chunked + chunk(event) + chunk(event),
    "stops within a chunk": chunked + chunk(event) + b"50\\r\\nabc",
    "ends with the connection": closing + event + done,
    "no done": closing + event + last,
    "no end": closing + event,
    "no answer": b"",
    "no HTTP": b"hello\\r\\n\\r\\n",
    "no stream": b"HTTP/1.1 200 OK\\r\\nContent-Length: 15\\r\\n\\r\\n" + b'{"choices": []}',
    "body goes on after done": chunked + chunk(event) + chunk(done),
    "never ends": chunked + chunk(event),
}
found = {}
for name, data in cases.items():
    def serve(socket, address, name=name, data=data):
        socket.recv(65536)
        socket.sendall(data)
        if name in ("body goes on after done", "never ends"):
            gevent.sleep(9)
        socket.close()
    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    asker = Asker(f"http://127.0.0.1:{server.server_port}", "/x", {}, 1.5, time.monotonic)
    answer = Answer()
    asker.ask({"a": 1}, answer)
    found[name] = [answer.outcome, len(answer.chunks), answer.end - answer.sent < 1]
    server.stop(timeout=0)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[object]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize(
    ("case", "outcome", "chunks"),
    [
        ("whole", "ok", 1),
        ("split", "ok", 1),
        ("stops between chunks", "broken", 2),
        ("stops within a chunk", "broken", 1),
        ("ends with the connection", "ok", 1),
        ("no done", "ok", 1),
        ("no end", "broken", 1),
        ("no answer", "connect", 0),
        ("no HTTP", "connect", 0),
        ("no stream", "broken", 0),
        ("body goes on after done", "ok", 1),
        ("never ends", "timeout", 1),
    ],
)
def test_what_becomes_of_an_answer(
    found: dict[str, list[object]], case: str, outcome: str, chunks: int
) -> None:
    assert found[case][:2] == [outcome, chunks]


def test_the_time_of_an_answer_ends_with_its_done(found: dict[str, list[object]]) -> None:
    assert found["body goes on after done"][2] is True
