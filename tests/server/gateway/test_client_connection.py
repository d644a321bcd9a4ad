"""What a client may send, and in what time: refused in the usual shape, by raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from server.gateway.client_connection import ClientLimits
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer
from tests.server.gateway.served import Server, running

PATH = b"/v1/chat/completions"
LIMITS = ClientLimits(
    header_bytes=4096, headers=20, header_timeout=0.3, body_timeout=0.3, keep_alive=20
)
# For what must not be slow by these limits, on however busy a machine.
PATIENT = replace(LIMITS, body_timeout=1.0)
IDLE = replace(LIMITS, keep_alive=0.3)


class Wire:
    """A client's end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers, document."""
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def ended(self) -> bytes:
        """What still comes until the server hangs up."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def wire(server: Server) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def request(body: bytes = b"", *headers: bytes, declared: int | None = None) -> bytes:
    length = b"Content-Length: %d" % (len(body) if declared is None else declared)
    return b"\r\n".join([b"POST " + PATH + b" HTTP/1.1", b"Host: x", length, *headers, b"", body])


GOOD = request(json.dumps(CHAT).encode())


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (request(b"", b"X-Long: " + b"x" * 5000), 431, "headers_too_large"),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "headers_too_large"),
        (request(b"", *(b"X-%d: 1" % n for n in range(30))), 431, "headers_too_large"),
        # Never complete: the parser would keep it all.
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 600_000, 431, "headers_too_large"),
        (b"what is this\r\n\r\n", 400, "invalid_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_request"),
    ],
)
async def test_what_is_too_much_or_no_http(
    gateway: Gateway, sent: bytes, status: int, code: str
) -> None:
    async with running(gateway, limits=LIMITS) as server, wire(server) as client:
        client.send(sent)
        found, headers, document = await client.answer()
        assert (found, document["error"]["code"]) == (status, code)
        assert headers["connection"] == "close"
        assert len(headers["x-request-id"]) == 32
        await client.ended()


async def test_limits_that_are_just_kept(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    async with running(gateway, limits=LIMITS) as server, wire(server) as client:
        client.send(request(json.dumps(CHAT).encode(), b"X-Long: " + b"x" * 3900))
        assert (await client.answer())[0] == 200
        client.send(request(json.dumps(CHAT).encode(), *(b"X-%d: 1" % n for n in range(18))))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("sent", [b"PO", b"POST /x HTTP/1.1\r\nHost: x\r\nX-Slow", GOOD + b"GET"])
async def test_headers_that_do_not_arrive(
    gateway: Gateway, engine: ScriptedEngine, sent: bytes
) -> None:
    engine.handler = answer
    async with running(gateway, limits=LIMITS) as server, wire(server) as client:
        client.send(sent)
        if sent.startswith(GOOD):
            assert (await client.answer())[0] == 200
        status, _, document = await client.answer()
        assert (status, document["error"]["code"]) == (408, "request_timeout")
        await client.ended()


async def test_a_body_that_does_not_arrive(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server")
    async with running(gateway, limits=LIMITS) as server, wire(server) as client:
        client.send(request(b'{"model":', declared=500))
        status, _, document = await client.answer()
        assert (status, document["error"]["code"]) == (408, "request_timeout")
        assert await client.ended() == b""
    fields: list[Any] = [getattr(record, "fields", None) for record in caplog.records]
    (line,) = [one for one in fields if one is not None]
    # What the client was told, not that it hung up.
    assert (line["status"], line["outcome"]) == (408, "request_timeout")


async def test_a_long_body_that_keeps_arriving_is_no_slow_one(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    body = json.dumps({**CHAT, "padding": "x" * 9000}).encode()
    async with running(gateway, limits=PATIENT) as server, wire(server) as client:
        client.send(request(declared=len(body)))
        began = time.monotonic()
        for start in range(0, len(body), 300):
            client.send(body[start : start + 300])
            await asyncio.sleep(0.08)
        assert time.monotonic() - began > 2 * PATIENT.body_timeout
        assert (await client.answer())[0] == 200


async def test_idle_connections_end(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    async with running(gateway, limits=IDLE) as server:
        async with wire(server) as silent:
            assert await silent.ended() == b""
        async with wire(server) as client:
            client.send(GOOD)
            assert (await client.answer())[0] == 200
            client.send(b"\r\n")  # No request, and no reason to stay.
            assert await client.ended() == b""


async def test_garbage_behind_a_request_does_not_cost_its_answer(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    go_on = asyncio.Event()

    async def later(*given: Any) -> Any:
        await go_on.wait()
        return await answer(*given)

    engine.handler = later
    async with running(gateway, limits=LIMITS) as server, wire(server) as client:
        client.send(GOOD + b"garbage\r\n\r\n")
        await asyncio.sleep(0.05)
        go_on.set()
        status, headers, document = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert document["choices"]
        assert await client.ended() == b""
