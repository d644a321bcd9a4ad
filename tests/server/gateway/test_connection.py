"""A client's connection: what is written at once leaves together, and never late."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

from aiohttp import web

from server.connection import BodyWriter, Holder
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Written(asyncio.Transport):
    """Keeps what is written, in the pieces in which it was."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = self.aborted = False

    def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed


async def test_what_is_written_at_once_leaves_together_when_the_loop_goes_on() -> None:
    written = Written()
    holder = Holder(written, asyncio.get_running_loop())
    holder.write(HEAD)
    holder.write(b"a")
    holder.write(b"b")
    assert written.pieces == []
    assert holder.get_write_buffer_size() == len(HEAD) + 2
    await asyncio.sleep(0)
    assert written.pieces == [HEAD + b"ab"]
    holder.write(HEAD)
    await asyncio.sleep(0)
    assert written.pieces[1:] == [HEAD]
    holder.write(HEAD)
    holder.close()
    assert written.pieces[2:] == [HEAD]
    holder.write(HEAD)
    await asyncio.sleep(0)
    assert len(written.pieces) == 3  # Nobody is there any more.


async def test_much_is_not_held() -> None:
    """Whoever writes without waiting must come to see that the client does not read."""
    written = Written()
    holder = Holder(written, asyncio.get_running_loop())
    for _ in range(5):
        holder.write(bytes(50_000))
    assert [len(piece) for piece in written.pieces] == [100_000, 100_000]
    holder.abort()
    await asyncio.sleep(0)
    assert len(written.pieces) == 2
    assert written.aborted


async def test_an_events_writer_writes_after_what_is_held() -> None:
    written = Written()
    holder = Holder(written, asyncio.get_running_loop())
    cycle = SimpleNamespace(
        disconnected=False,
        chunked_encoding=True,
        response_complete=False,
        flow=SimpleNamespace(write_paused=False),
    )
    write = BodyWriter(cast(Any, cycle), holder)
    holder.write(HEAD)
    assert write(b"data")
    assert written.pieces == [HEAD, b"4\r\ndata\r\n"]
    cycle.flow.write_paused = True
    assert not write(b"x")
    cycle.disconnected = True
    assert not write(b"y")
    assert len(written.pieces) == 3


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
