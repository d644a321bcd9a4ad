"""An engine without a model: `python -m loadtests.fast_engine SOCKET --step-ms 5`.

Speaks as much of vLLM's HTTP as the gateway needs, on a unix socket. Like the engine it answers all
streams in steps: every `step-ms` each open stream gets one event, written by itself. For measuring
what the gateway costs, by its processor time, where a model would take nearly all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import cast

import uvloop

MODEL = "smollm2"
_EVENT = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
    '"created":1700000000,"model":"%s","choices":[{"index":0,"text":" word","logprobs":null,'
    '"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
)
_USAGE = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
    '"created":1700000000,"model":"%s","choices":[],"usage":{"prompt_tokens":5,'
    '"total_tokens":%d,"completion_tokens":%d}}\n\n'
)
_STREAM = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Steps:
    """The streams that are open, and the clock that gives each of them an event."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._streams: list[Stream] = []
        self._running: asyncio.Task[None] | None = None

    def join(self, stream: Stream) -> None:
        """From the next step on it gets events."""
        self._streams.append(stream)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while self._streams:
            due = max(due + self._seconds, clock())
            await asyncio.sleep(due - clock())
            self._streams = [stream for stream in self._streams if stream.step()]


class Stream:
    """One answer in parts."""

    def __init__(self, transport: asyncio.Transport, model: str, tokens: int, *, usage: bool):
        self._transport = transport
        self._event = _chunk(_EVENT % model)
        self._left = tokens
        self._end = (
            (_chunk(_USAGE % (model, tokens + 5, tokens)) if usage else b"")
            + _chunk("data: [DONE]\n\n")
            + b"0\r\n\r\n"
        )

    def step(self) -> bool:
        """Write the next event, or the end; False when nothing comes after it."""
        if self._transport.is_closing():
            return False
        self._left -= 1
        if self._left < 0:
            self._transport.write(self._end)
            return False
        self._transport.write(self._event)
        return True


class Connection(asyncio.Protocol):
    """One connection of the gateway, kept open between requests."""

    def __init__(self, steps: Steps):
        self._steps = steps
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none of asyncio's classes, but does the same.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        if len(rest) < length:
            return
        self._received = rest[length:]
        self._answer(head.split(b" ", 2)[1].decode(), rest[:length])

    def _answer(self, path: str, body: bytes) -> None:
        if not body:
            self._whole({"data": [{"id": MODEL}]} if path == "/v1/models" else {})
            return
        asked = json.loads(body)
        if not asked.get("stream"):
            counted = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
            self._whole({"model": asked["model"], "choices": [{"text": "a"}], "usage": counted})
            return
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        self._transport.write(_STREAM)
        tokens = int(asked["max_tokens"])
        self._steps.join(Stream(self._transport, asked["model"], tokens, usage=usage))

    def _whole(self, document: object) -> None:
        body = json.dumps(document, separators=(",", ":")).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self._transport.write(head.encode() + b"\r\n\r\n" + body)


def _chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def serve(socket: Path, seconds: float) -> None:
    """Until killed."""
    steps = Steps(seconds)
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: Connection(steps), str(socket))
    await server.serve_forever()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--step-ms", type=float, default=5.0)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.socket, options.step_ms / 1e3))


if __name__ == "__main__":
    main()
