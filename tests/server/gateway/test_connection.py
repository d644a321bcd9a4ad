"""A client's connection: heads leave with what follows them, and never late."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from aiohttp import web

import server.connection
from server.connection import HeadHolder
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Written(asyncio.Transport):
    """Keeps what is written, in the pieces in which it was."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def test_a_head_goes_with_the_body_or_by_itself_when_the_loop_goes_on() -> None:
    written = Written()
    holder = HeadHolder(written, asyncio.get_running_loop())
    holder.write(HEAD)
    assert written.pieces == []
    holder.write(b"a")
    holder.write(b"b")
    assert written.pieces == [HEAD + b"a", b"b"]
    await asyncio.sleep(0)
    assert len(written.pieces) == 2
    holder.write(HEAD)
    await asyncio.sleep(0)
    assert written.pieces[2:] == [HEAD]
    holder.write(HEAD)
    holder.close()
    assert written.pieces[3:] == [HEAD]
    holder.write(HEAD)
    await asyncio.sleep(0)
    assert len(written.pieces) == 4  # Nobody is there any more.


async def test_an_answer_comes_in_one_piece(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps(CHAT).encode()
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for _ in range(3):
        writer.write(request.encode() + body)
        found = await asyncio.wait_for(reader.read(2**16), 5)
        assert found.startswith(HEAD[:15])
        assert found.endswith(b"}")
    writer.close()


async def test_a_streams_head_comes_with_its_first_event(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    go_on = asyncio.Event()

    async def slow(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: {}\n\n")
        await go_on.wait()
        return response

    engine.handler = slow
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    found = await asyncio.wait_for(reader.read(2**16), 5)
    assert found.startswith(HEAD[:15])
    assert b"data: {}" in found
    go_on.set()
    writer.close()


async def test_whoever_starts_uvicorn_in_this_process_gets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    monkeypatch.setattr(server.connection, "HTTP_PROTOCOLS", uvicorn.config.HTTP_PROTOCOLS)

    async def application(scope: object, receive: object, send: object) -> None: ...

    server.connection.hold_heads()
    config = uvicorn.Config(application)
    config.load()
    assert config.http_protocol_class is server.connection.HeadHolding
