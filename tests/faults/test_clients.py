"""Clients that want too much, or nothing: who is beside them is served, and all is given back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from tests.faults.served import CHAT, PATH, Served, allow_files
from tests.server.gateway.scripted import answer, chunk, sse

IN_FLIGHT = "adapterctl_requests_in_flight"
IDLE = 10_000
MIB = 1 << 20


async def test_ten_thousand_idle_connections_keep_nobody_from_an_answer(server: Served) -> None:
    if not allow_files(IDLE + 500):
        pytest.skip(f"this process may not open {IDLE + 500} files (see `ulimit -Hn`)")
    server.engine.handler = answer
    assert (await server.ask())[0] == 200
    files, before = server.process.num_fds(), server.memory
    address = urlsplit(server.live.url)
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            idle = stack.enter_context(socket.socket())
            await asyncio.to_thread(idle.connect, (address.hostname, address.port))
        async with asyncio.timeout(20):
            while server.process.num_fds() < files + IDLE:
                await asyncio.sleep(0.05)
        for _ in range(20):
            status, document = await server.ask()
            assert (status, document["choices"][0]["message"]["content"]) == (200, "arr")
        # uvicorn's connection with its parser, buffers and timers.
        assert server.memory - before < IDLE * 40_000
    async with asyncio.timeout(20):
        while server.process.num_fds() > files + 50:
            await asyncio.sleep(0.05)
    assert (await server.ask())[0] == 200


async def ask_at_once(server: Served, count: int) -> list[tuple[int, str | None]]:
    """Status and Retry-After of so many requests that come at the same moment."""

    async def ask() -> tuple[int, str | None]:
        async with server.client.post(server.live.url + PATH, json=CHAT) as response:
            document = await response.json()
            assert ("error" in document) is (response.status != 200)
            return response.status, response.headers.get("retry-after")

    return await asyncio.gather(*(ask() for _ in range(count)))


async def slowly(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(0.05)
    return await answer(request, document)


async def test_a_burst_is_answered_or_told_to_come_back(server: Served) -> None:
    """One tenant may have 128 at the engine and 256 in the queue; the rest is told at once."""
    assert allow_files(3000)
    server.engine.handler = slowly
    answers = await ask_at_once(server, 1000)
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 128 + 256
    assert statuses.count(200) == len(server.engine.received)
    assert all(after is not None for status, after in answers if status == 429)
    await server.until(IN_FLIGHT, 0)
    await server.until("adapterctl_queue_requests", 0)
    assert (await server.ask())[0] == 200


@pytest.mark.serve("--queue-limit-per-tenant", "1024")
async def test_a_burst_that_the_queue_may_hold_loses_nothing(server: Served) -> None:
    assert allow_files(3000)
    server.engine.handler = slowly
    answers = await ask_at_once(server, 1000)
    assert [status for status, _ in answers] == [200] * 1000
    assert len(server.engine.received) == 1000
    await server.until(IN_FLIGHT, 0)


def request_bytes(**changes: Any) -> bytes:
    body = json.dumps({**CHAT, **changes}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.serve("--write-timeout", "1", "--max-in-flight", "2")
async def test_a_client_that_never_reads_is_cut_off_and_costs_little_memory(
    server: Served,
) -> None:
    """The engine makes more than anybody could keep; two such clients have all places."""
    made, begun = 0, asyncio.Semaphore(0)

    async def endless(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        nonlocal made
        begun.release()
        response = await sse(request, [])
        while True:
            await response.write(chunk("x" * 65536))
            made += 65536

    server.engine.handler = endless
    before = server.memory
    clients = [await server.connect() for _ in range(2)]
    for _, writer in clients:
        # Its own buffer is small, and it takes nothing out of it.
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request_bytes(stream=True))
    async with asyncio.timeout(10):
        for _ in clients:
            await begun.acquire()
    # Whoever comes next waits for their places, and gets one.
    server.engine.handler = answer
    async with asyncio.timeout(20):
        assert (await server.ask())[0] == 200
    await server.until(IN_FLIGHT, 0)
    # Each stream fills the buffers between engine and client (256 KiB, 64 KiB and the kernel's).
    assert server.memory - before < 32 * MIB
    assert made < 64 * MIB
    await asyncio.wait_for(server.engine.aborted.wait(), 5)
    for _, writer in clients:
        writer.transport.abort()


@pytest.mark.serve("--write-timeout", "1")
async def test_a_client_that_reads_slowly_gets_everything(server: Served) -> None:
    """Slower than the engine, but it does read: it is not taken for one that left."""
    pieces = 60

    async def long(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [])
        for _ in range(pieces):
            await response.write(chunk("x" * 65536))
        await response.write(b"data: [DONE]\n\n")
        return response

    server.engine.handler = long
    got = 0
    async with server.client.post(
        server.live.url + PATH, json={**CHAT, "stream": True}, read_bufsize=1 << 12
    ) as response:
        tail = b""
        while piece := await response.content.read(1 << 16):
            got, tail = got + len(piece), (tail + piece)[-32:]
            await asyncio.sleep(0.03)
    assert got > pieces * 65536
    assert tail.endswith(b"data: [DONE]\n\n")


async def test_a_body_that_comes_byte_by_byte_keeps_nobody_waiting(server: Served) -> None:
    server.engine.handler = answer
    reader, writer = await server.connect()
    for byte in request_bytes():
        writer.write(bytes([byte]))
        await writer.drain()
        if byte == ord(","):
            assert (await server.ask())[0] == 200
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    writer.close()


@pytest.mark.parametrize("sent", [1, 20, 120, -1])
async def test_a_request_that_breaks_off_leaves_nothing(server: Served, sent: int) -> None:
    server.engine.handler = answer
    _, writer = await server.connect()
    writer.write(request_bytes()[:sent])
    await writer.drain()
    writer.transport.abort()
    assert (await server.ask())[0] == 200
    await server.until(IN_FLIGHT, 0)
    assert len(server.engine.received) == 1
