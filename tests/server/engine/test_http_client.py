"""HTTP to an engine: answers in any packets, connections kept or closed, and nothing smuggled."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import http_connection
from server.engine.endpoint import Endpoint
from server.engine.http_client import Client
from server.engine.http_connection import Answer, ConnectionBroken
from tests.server.gateway.test_tls import write_certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Plain; charset=utf-8\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wire:
    """A server that says just what it is told to, and keeps what it was asked."""

    def __init__(self, path: Path):
        self.path = path
        self.says: Talk | list[bytes] = []
        self.asked: list[bytes] = []
        self.connections = 0
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line[15:]) for line in head.splitlines() if line[:15] == LENGTH]
                self.asked.append(head + await reader.readexactly(sum(length)))
                if callable(self.says):
                    await self.says(reader, writer)
                    continue
                for packet in self.says:
                    writer.write(packet)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


LENGTH = b"content-length:"


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    found = Wire(tmp_path / "w.sock")
    listening = await asyncio.start_unix_server(found.serve, str(found.path))
    yield found
    listening.close()


@pytest.fixture
async def client(wire: Wire) -> AsyncIterator[Client]:
    found = Client(Endpoint.of("http://engine", wire.path), 1, 60)
    yield found
    found.close()


async def ask(client: Client, path: str = "/", body: bytes | None = None, **headers: str) -> Answer:
    return await client.ask(await client.connection(), "POST", path, headers, body)


async def read(answer: Answer, taken: int) -> bytes:
    """The rest of it: read, or handed on, so many parts at a time."""
    if not taken:
        return await answer.read()
    parts: list[bytes] = []

    def take(data: bytes) -> bool:
        assert data
        parts.append(data)
        return len(parts) % taken > 0

    while not answer.at_end:
        await answer.hand_on(take)
    return b"".join(parts)


def chunked(parts: list[bytes]) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def sized(parts: list[bytes]) -> bytes:
    body = b"".join(parts)
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(st.binary(max_size=40), max_size=5),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    make=st.sampled_from([chunked, sized]),
    announced=st.booleans(),
    taken=st.integers(0, 3),
)
def test_an_answer_is_the_same_in_whatever_packets(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[bytes],
    cuts: list[int],
    make: Callable[[list[bytes]], bytes],
    announced: bool,
    taken: int,
) -> None:
    text = (b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" if announced else b"") + make(parts)

    async def check() -> None:
        wire = Wire(tmp_path_factory.mktemp("w") / "w.sock")
        wire.says, at = [], 0
        while at < len(text):
            cut = cuts[len(wire.says) % len(cuts)]
            wire.says.append(text[at : at + cut])
            at += cut
        async with await asyncio.start_unix_server(wire.serve, str(wire.path)):
            client = Client(Endpoint.of("http://engine", wire.path), 1, 60)
            for _ in range(2):
                async with await ask(client) as answer:
                    assert (answer.status, answer.content_type) == (200, "text/plain")
                    assert "x" not in answer.headers
                    assert await read(answer, taken) == b"".join(parts)
                    assert await answer.read_some() == b""
            assert wire.connections == 1
            client.close()

    asyncio.run(check())


async def test_what_is_sent_is_the_request(wire: Wire, client: Client) -> None:
    wire.says = [sized([b"{}"])]
    async with await ask(client, "/v1/x", b"body", accept="*/*") as answer:
        assert await answer.json() == {}
    head, _, body = wire.asked[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/x HTTP/1.1",
        b"host: engine",
        b"accept: */*",
        b"content-length: 4",
    ]
    assert body == b"body"


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
async def test_no_value_makes_another_header(wire: Wire, client: Client, end: str) -> None:
    for path, headers in ((f"/{end}x: y", {}), ("/", {"accept": f"a{end}x: y"})):
        with pytest.raises(ValueError, match="end of line"):
            await client.ask(await client.connection(), "GET", path, headers, None)
    assert wire.asked == []
    # What was refused has cost no connection.
    wire.says = [sized([b"x"])]
    async with await ask(client) as answer:
        assert answer.status == 200
    assert wire.connections == 1


async def test_an_answer_left_unread_closes_its_connection(wire: Wire, client: Client) -> None:
    wire.says = [OK + b"Content-Length: 9\r\n\r\nhalf"]
    answer = await ask(client)
    assert await answer.read_some() == b"half"
    answer.release()
    async with asyncio.timeout(5):
        await wire.hung_up.wait()
    wire.says = [sized([b"new"])]
    async with await ask(client) as answer:
        assert await answer.read() == b"new"
    assert wire.connections == 2


@pytest.mark.parametrize(
    "read_on",
    [Answer.read_some, lambda answer: answer.hand_on(lambda _: True)],
    ids=["read", "handed on"],
)
async def test_closing_an_answer_wakes_its_reader(
    wire: Wire, client: Client, read_on: Callable[[Answer], Coroutine[None, None, object]]
) -> None:
    wire.says = [OK + b"\r\nto be continued"]
    answer = await ask(client)
    assert await answer.read_some() == b"to be continued"
    reading = asyncio.create_task(read_on(answer))
    await asyncio.sleep(0)
    answer.close()
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionBroken, match="wanted no more"):
            await reading
        await wire.hung_up.wait()


async def test_what_is_handed_on_is_so_before_anything_else_runs(
    wire: Wire, client: Client
) -> None:
    """Nobody has to be woken for a part."""
    chunk = b"4\r\npart\r\n"
    wire.says = [OK + b"Transfer-Encoding: chunked\r\n\r\n", chunk, chunk + chunk, b"0\r\n\r\n"]
    waits = 0
    parts: list[bytes] = []

    def take(data: bytes) -> bool:
        parts.append(data)
        return True

    async with await ask(client) as answer:
        waiting = answer._more

        async def counted() -> None:
            nonlocal waits
            waits += 1
            await waiting()

        answer._more = counted  # type: ignore[method-assign]
        await answer.hand_on(take)
    assert b"".join(parts) == b"part" * 3
    assert waits == 1
    assert wire.connections == 1


async def test_what_a_taker_raises_comes_out(wire: Wire, client: Client) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(b"part")
        await writer.drain()

    def take(_: bytes) -> bool:
        raise LookupError("of its own")

    wire.says = talk
    async with asyncio.timeout(5):
        async with await ask(client) as answer:
            with pytest.raises(LookupError, match="of its own"):
                await answer.hand_on(take)
        await wire.hung_up.wait()


async def test_who_waits_for_headers_and_is_cancelled_hangs_up(wire: Wire, client: Client) -> None:
    wire.says = []
    waiting = asyncio.create_task(ask(client))
    async with asyncio.timeout(5):
        while not wire.asked:
            await asyncio.sleep(0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await wire.hung_up.wait()


@pytest.mark.parametrize(
    "said",
    [b"", OK, OK + b"Content-Length: 9\r\n\r\nhalf", chunked([b"half"])[:-5]],
    ids=["nothing", "a part of the head", "a part of the body", "chunks without an end"],
)
async def test_an_answer_that_breaks_off_is_an_error(
    wire: Wire, client: Client, said: bytes
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        writer.close()

    wire.says = talk
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionBroken, match="before its answer's end"):
            async with await ask(client) as answer:
                await answer.read()


async def test_without_a_length_an_answer_ends_with_its_connection(
    wire: Wire, client: Client
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        writer.close()

    wire.says = talk
    for _ in range(2):
        async with await ask(client) as answer:
            assert await answer.text() == "all of it"
    assert wire.connections == 2


async def test_what_is_no_http_is_an_error(wire: Wire, client: Client) -> None:
    wire.says = [b"SSH-2.0-OpenSSH_9.2\r\n"]
    with pytest.raises(ConnectionBroken, match="no HTTP"):
        await ask(client)


async def test_the_engine_waits_for_a_reader_that_is_slow(
    wire: Wire, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "_UNREAD", 1000)
    size, sent = 50_000_000, 0

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(bytes(100_000))
            sent += 100_000
            await writer.drain()

    wire.says = talk
    answer = await ask(client)
    before = -1
    while sent > before:
        before = sent
        await asyncio.sleep(0.2)
    # What the kernel and both ends' buffers hold, and no more.
    assert sent < size / 5
    async with answer:
        assert len(await answer.read()) == size
    assert sent == size


async def test_who_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Client(Endpoint.of("http://engine", tmp_path / "none"), 1, 60).connection()


async def test_a_closed_client_connects_no_more(wire: Wire, client: Client) -> None:
    client.close()
    with pytest.raises(ConnectionBroken, match="are closed"):
        await client.connection()
    assert wire.connections == 0


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix", "tls"),
    [
        ("http://engine", "engine", 80, "engine", "", False),
        ("http://127.0.0.1:81/a/", "127.0.0.1", 81, "127.0.0.1:81", "/a", False),
        ("https://[::1]:8443", "::1", 8443, "[::1]:8443", "", True),
        ("https://e.example", "e.example", 443, "e.example", "", True),
    ],
)
def test_endpoints(url: str, host: str, port: int, authority: str, prefix: str, tls: bool) -> None:
    to = Endpoint.of(url)
    assert (to.host, to.port, to.authority, to.prefix) == (host, port, authority, prefix)
    assert (to.tls is not None) is tls


@pytest.mark.parametrize("url", ["ftp://engine", "engine:80", "http://", "http://e:none"])
def test_no_endpoints(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|[Pp]ort"):
        Endpoint.of(url)


async def test_an_engine_behind_tls_shows_whom_it_is(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_certificate(cert, key, "localhost")
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(cert, key)
    wire.says = [sized([b"secret"])]
    async with await asyncio.start_server(wire.serve, "localhost", ssl=theirs) as listening:
        port = listening.sockets[0].getsockname()[1]
        for trusted in (True, False):
            monkeypatch.setenv("SSL_CERT_FILE", str(cert if trusted else os.devnull))
            client = Client(Endpoint.of(f"https://localhost:{port}"), 5, 60)
            if trusted:
                async with await ask(client) as answer:
                    assert await answer.read() == b"secret"
            else:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await client.connection()
            client.close()
