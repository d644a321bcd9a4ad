"""Both ends of the channel: answers as on a connection of their own, whatever ends or waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import StreamingResponse

from server.engine import http_connection
from server.engine.channel import CHANNEL_HEADER, PAIR, Channel, channel_socket
from server.engine.endpoint import Endpoint
from server.engine.http_client import Client
from server.engine.http_connection import Answer, ConnectionBroken
from server.vllm_plugin import channel
from server.vllm_plugin.channel import EngineConnection
from tests.server.vllm_plugin.talking_engine import Engine, Long, echo


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(uvicorn.config, "HTTP_PROTOCOLS", dict(uvicorn.config.HTTP_PROTOCOLS))
    monkeypatch.setattr(channel, "HTTP_PROTOCOLS", uvicorn.config.HTTP_PROTOCOLS)
    monkeypatch.setattr(StreamingResponse, "__call__", StreamingResponse.__call__)
    channel.answer_through_channels()
    engine = Engine(tmp_path / "engine.sock")
    config = uvicorn.Config(
        engine.application,
        uds=str(engine.socket),
        log_level="warning",
        lifespan="off",
        interface="asgi3",
    )
    config.load()
    assert config.http_protocol_class is EngineConnection
    server = uvicorn.Server(config)
    served = asyncio.create_task(server.serve())
    listening = await channel.listen(engine.socket)
    while not server.started:
        await asyncio.sleep(0.01)
    yield engine
    listening.close()
    server.should_exit = True
    await served


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[Client]:
    """Its channel is open: the first request opened it."""
    client = Client(Endpoint.of("http://engine", engine.socket), 5, 2.5)
    async with await _ask(client, b"first") as answer:
        assert await answer.read() == b"first"
    while client._channel is None or not client._channel.is_open:
        await asyncio.sleep(0.01)
    yield client
    client.close()


async def _ask(client: Client, body: bytes) -> Answer:
    return await client.ask(await client.connection(), "POST", "/", {}, body)


def _server_end() -> channel.Channel:
    (end,) = channel._OPEN.values()
    return end


async def test_answers_come_mixed_and_each_to_its_own(client: Client) -> None:
    async def one(number: int) -> None:
        words = [b"%d-%d" % (number, index) for index in range(50)]
        for _ in range(3):
            async with await _ask(client, b" ".join(words)) as answer:
                assert answer._connection._channel is client._channel
                assert await answer.read() == b"".join(words)

    await asyncio.gather(*[one(number) for number in range(16)])
    # Connections are used again, and none is forgotten while it is open.
    assert len(_server_end()._connections) == 16


async def test_all_of_a_round_leaves_in_one_write(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def talk(body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
        await say(b"head")
        await go_on.wait()
        await say(body)

    engine.talk = talk
    answers = [await _ask(client, b"%d" % number) for number in range(8)]
    for answer in answers:
        assert await answer.read_some() == b"head"
    pieces: list[bytes] = []
    received = Channel.data_received

    def data_received(self: Channel, data: bytes) -> None:
        pieces.append(data)
        received(self, data)

    monkeypatch.setattr(Channel, "data_received", data_received)
    go_on.set()
    for number, answer in enumerate(answers):
        assert await answer.read() == b"%d" % number
        answer.release()
    # The bodies, then perhaps their ends.
    assert len(pieces) <= 2


async def test_the_first_request_does_not_wait_for_the_channel(engine: Engine) -> None:
    client = Client(Endpoint.of("http://engine", engine.socket), 5, 2.5)
    async with await _ask(client, b"a b") as answer:
        assert answer._connection._channel is None
        assert await answer.read() == b"ab"
    client.close()


async def test_an_engine_without_a_channel_answers_as_ever(client: Client, engine: Engine) -> None:
    channel_socket(engine.socket).unlink()
    other = Client(Endpoint.of("http://engine", engine.socket), 5, 2.5)
    for _ in range(3):
        async with await _ask(other, b"a b") as answer:
            assert await answer.read() == b"ab"
    assert other._channel is None
    other.close()


async def test_a_body_that_the_end_of_the_connection_ends(client: Client, engine: Engine) -> None:
    """The end is seen on another socket than what comes before it."""

    async def talk(body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
        await say(body)
        for connection in list(_server_end()._connections.values()):
            connection.transport.close()

    engine.talk, engine.length = talk, 200_000
    async with await _ask(client, bytes(200_000)) as answer:
        assert await answer.read() == bytes(200_000)
    engine.length = 200_001
    async with await _ask(client, bytes(200_000)) as answer:
        with pytest.raises(ConnectionBroken, match="before its answer's end"):
            await answer.read()


@pytest.mark.parametrize("known", [True, False])
async def test_a_request_that_the_engine_never_read(
    client: Client, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Closed just when it was sent, on a connection that named the channel before, or never did."""
    connections = [await client.connection() for _ in range(2)]
    if known:
        for connection in connections:
            async with await client.ask(connection, "POST", "/", {}, b"x") as answer:
                await answer.read()
        connections = [await client.connection() for _ in range(2)]

    def closed(self: EngineConnection, data: bytes) -> None:
        self.transport.close()

    with monkeypatch.context() as patched:
        patched.setattr(EngineConnection, "data_received", closed)
        for connection in connections:
            with pytest.raises(ConnectionBroken):
                await asyncio.wait_for(client.ask(connection, "POST", "/", {}, b"x"), 5)
    async with await _ask(client, b"a b") as answer:
        assert await answer.read() == b"ab"


async def test_a_resting_connection_that_the_engine_closes(client: Client) -> None:
    async with await _ask(client, b"a") as answer:
        await answer.read()
    (connection,) = _server_end()._connections.values()
    connection.transport.close()
    while any(resting.usable for resting in client._resting):
        await asyncio.sleep(0.001)
    async with await asyncio.wait_for(_ask(client, b"a b"), 5) as answer:
        assert await answer.read() == b"ab"


async def test_who_hangs_up_ends_the_request(client: Client, engine: Engine) -> None:
    async def talk(body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
        while not engine.hung_up.is_set():
            await say(body)
            await asyncio.sleep(0.001)

    engine.talk = talk
    answer = await _ask(client, b"again")
    assert await answer.read_some()
    answer.release()
    await asyncio.wait_for(engine.hung_up.wait(), 5)
    # And others go on.
    engine.talk = echo
    async with await _ask(client, b"a b") as answer:
        assert await answer.read() == b"ab"


@pytest.mark.parametrize("end", ["engine", "gateway"])
async def test_a_channel_that_is_lost(client: Client, engine: Engine, end: str) -> None:
    async def talk(body: bytes, say: Callable[[bytes], Awaitable[None]]) -> None:
        await say(body)
        await engine.hung_up.wait()

    engine.talk = talk
    answer = await _ask(client, b"part")
    assert await answer.read_some() == b"part"
    assert client._channel is not None
    lost = client._channel if end == "gateway" else _server_end()
    assert lost._transport is not None
    lost._transport.abort()
    with pytest.raises(ConnectionBroken):
        await asyncio.wait_for(answer.read(), 5)
    answer.release()
    await asyncio.wait_for(engine.hung_up.wait(), 5)
    # What is asked from now on needs none.
    engine.talk = echo
    async with await _ask(client, b"a b") as answer:
        assert await answer.read() == b"ab"


async def test_the_engine_waits_for_one_reader_alone(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "_UNREAD", 1000)
    engine.talk = talk = Long(500, 1000)
    slow = await _ask(client, b"large")
    assert await talk.stalled() < 100
    engine.talk = echo
    async with await _ask(client, b"small") as answer:
        assert await answer.read() == b"small"
    async with slow:
        assert await slow.read() == bytes(500_000)


async def _parts() -> AsyncIterator[str | bytes | memoryview]:
    for part in ("ä", b"", memoryview(b"b"), "c"):
        await asyncio.sleep(0)
        yield part


async def test_a_stream_writes_its_parts_itself(client: Client, engine: Engine) -> None:
    engine.response = StreamingResponse(_parts())
    async with await _ask(client, b"x") as answer:
        assert await answer.read() == "äbc".encode()
    assert engine.sent == [b"head", b""]
    # The connection goes on being used.
    engine.response = StreamingResponse(_parts(), headers={"content-length": "4"})
    async with await _ask(client, b"x") as answer:
        assert await answer.read() == "äbc".encode()
    assert engine.sent == [b"head", b"", b"head", "ä".encode(), b"", b"b", b"c", b""]


async def test_a_stream_without_a_channel_sends_its_parts(engine: Engine) -> None:
    client = Client(Endpoint.of("http://engine", engine.socket), 5, 2.5)
    engine.response = StreamingResponse(_parts())
    async with await _ask(client, b"x") as answer:
        assert await answer.read() == "äbc".encode()
    assert engine.sent == [b"head", "ä".encode(), b"", b"b", b"c", b""]
    client.close()


async def test_a_stream_that_writes_itself_waits_and_is_ended(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "_UNREAD", 1000)
    said, ended = 0, asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        nonlocal said
        try:
            while said < 500:
                said += 1
                await asyncio.sleep(0)
                yield bytes(1000)
        finally:
            ended.set()

    engine.response = StreamingResponse(parts())
    answer = await _ask(client, b"x")
    before = -1
    while said > before:
        before = said
        await asyncio.sleep(0.2)
    assert said < 100
    answer.close()
    await asyncio.wait_for(ended.wait(), 5)
    assert said < 100


async def test_all_wait_where_the_gateway_reads_nothing(client: Client, engine: Engine) -> None:
    talk = Long(1000, 10_000)
    assert client._channel is not None
    assert client._channel._transport is not None
    engine.talk = talk
    answer = await _ask(client, b"large")
    client._channel._transport.pause_reading()
    assert await talk.stalled() < 500
    client._channel._transport.resume_reading()
    async with answer:
        assert await answer.read() == bytes(10_000_000)


async def test_a_channel_of_another_api_server(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the socket for HTTP: the answer comes on the connection, and so does its end."""
    monkeypatch.setattr(http_connection, "_UNREAD", 1000)
    monkeypatch.setattr(channel, "_OPEN", {})
    talk = Long(5000, 1000)
    async with await _ask(client, b"a b") as answer:
        assert answer._connection._channel is client._channel
        assert await answer.read() == b"ab"
    engine.talk, engine.length = talk, 5_000_001
    async with await _ask(client, b"large") as answer:
        assert await talk.stalled() < 2000
        with pytest.raises(ConnectionBroken, match="before its answer's end"):
            await asyncio.wait_for(answer.read(), 20)


async def test_a_channel_nobody_opened(engine: Engine) -> None:
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    head = f"POST / HTTP/1.1\r\nhost: x\r\n{CHANNEL_HEADER}: 0123456789abcdef 7\r\n"
    writer.write(head.encode() + b"content-length: 1\r\n\r\nx")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)) == b"HTTP/1.1 200 OK\r\n"
    writer.close()


class _Heard:
    def __init__(self) -> None:
        self.data = b""
        self.ended = 0

    def data_received(self, data: bytes) -> None:
        assert not self.ended
        self.data += data

    def said_all(self) -> None:
        self.ended += 1


@given(
    st.lists(st.tuples(st.integers(1, 4), st.binary(min_size=1, max_size=40)), max_size=30),
    st.lists(st.integers(1, 60), max_size=30),
)
def test_frames_in_any_packets(said: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """Number 4 is listened to by nobody."""
    heard = {number: _Heard() for number in (1, 2, 3)}
    end = Channel()
    for number, listener in heard.items():
        end.listen(number, listener)
    data = b"".join(PAIR.pack(number, len(part)) + part for number, part in said)
    data += PAIR.pack(1, 0) + PAIR.pack(0, 0)
    for cut in cuts:
        end.data_received(data[:cut])
        data = data[cut:]
    end.data_received(data)
    for number, listener in heard.items():
        assert listener.data == b"".join(part for to, part in said if to == number)
        assert listener.ended == (number == 1)
    assert end._known
    end.connection_lost(None)
    assert [listener.ended for listener in heard.values()] == [1, 1, 1]
