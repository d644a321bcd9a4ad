"""Whatever comes over the socket: an answer in OpenAI's shape or a closed connection, never a 500,
never a hang, and the next request is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/v1/models")
# In which every connection must have come to some end once its client sends no more.
SECONDS = 5
PATIENCE = 0.25
ROUNDS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
# Fields that the gateway itself looks at.
FIELDS = """
    model messages stream stream_options max_tokens max_completion_tokens chat_template
    chat_template_kwargs prompt input n tools priority cache_salt
"""
HEADERS = """
    Authorization X-Api-Key X-Request-Id X-Tenant Traceparent Content-Type Accept Expect
    Content-Length Transfer-Encoding Connection Host Cookie
"""
fields = st.sampled_from(FIELDS.split())
models = st.sampled_from(["pirate:prod", "tiny", "pirate*0.5+pirate:v2*0.5", "weighty", "nobody"])
documents = st.builds(
    lambda model, rest: {**CHAT, "model": model, **rest},
    models | st.text(max_size=40),
    st.dictionaries(fields, json_values, max_size=5),
)
header_text = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=60)
headers = st.dictionaries(
    st.sampled_from(HEADERS.split()),
    header_text,
    max_size=5,
)


async def strict(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    """As vLLM: what it does not understand is a 400 of its own."""
    if not isinstance(document.get("messages"), list):
        message = {"message": "messages: a list is needed", "type": "BadRequestError"}
        return web.json_response({"error": message}, status=400)
    return await answer(request, document)


async def exchange(gateway: Gateway, data: bytes) -> bytes:
    """All that comes back for these bytes, until the server closes; TimeoutError: it does not."""
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    answered = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError):
            # Whatever is no whole request is waited for: the client gives up first.
            async with asyncio.timeout(PATIENCE):
                while piece := await reader.read(1 << 16):
                    answered += piece
                return answered
        writer.write_eof()
        async with asyncio.timeout(SECONDS):
            return answered + await reader.read()
    except ConnectionError:
        return answered
    finally:
        writer.transport.abort()


def check(answered: bytes) -> None:
    """One answer or several, each well-formed as far as one can say, and none a 500."""
    if not answered:
        return
    head, _, body = answered.partition(b"\r\n\r\n")
    version, status, *_ = head.split(b" ", 2)
    assert version == b"HTTP/1.1"
    assert int(status) not in {500, 501}, answered
    if int(status) < 400 or b"\r\nHTTP/1.1" in body or b"HTTP/1.1 " in body:
        return
    if b"application/json" not in head.lower():
        # uvicorn's own, for what is no HTTP.
        assert int(status) in {400, 413, 431}, answered
        return
    error = json.loads(body)["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert "Traceback" not in error["message"]


class Fuzz:
    """Sends from hypothesis's thread what it drew, to a gateway on this event loop."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self.statuses: Counter[bytes] = Counter()

    def send(self, data: bytes) -> None:
        """One connection; raises where what comes back is not as it should be."""
        work = exchange(self._gateway, data)
        answered = asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS * 4)
        self.statuses[answered[9:12]] += 1
        check(answered)

    async def play(self, one: Callable[[], None], *statuses: bytes) -> None:
        """All rounds; among the answers must have been these, and the gateway be as before."""
        await asyncio.to_thread(one)
        assert set(statuses) <= self.statuses.keys(), self.statuses
        async with self._gateway.post(PATHS[0], json=CHAT) as response:
            assert response.status == 200
        await self._gateway.settled("adapterctl_requests_in_flight", 0, adapter="pirate")


def request_bytes(path: str, head: dict[str, str], body: bytes, *, length: bool) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: x", b"connection: close"]
    lines += [f"{name}: {value}".encode("latin-1") for name, value in head.items()]
    if length:
        lines.append(f"content-length: {len(body)}".encode())
    return b"\r\n".join([*lines, b"", body])


async def test_documents(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler, fuzz = strict, Fuzz(gateway)

    @ROUNDS
    @given(path=st.sampled_from(PATHS), document=documents | json_values)
    def one(path: str, document: Any) -> None:
        body = json.dumps(document).encode()
        fuzz.send(request_bytes(path, {}, body, length=True))

    await fuzz.play(one, b"200", b"400", b"404")


async def test_bodies_that_are_no_json(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler, fuzz = strict, Fuzz(gateway)
    whole = json.dumps(CHAT).encode()

    @ROUNDS
    @given(
        body=st.binary(max_size=200)
        | st.builds(lambda cut, more: whole[:cut] + more, st.integers(0, len(whole)), st.binary())
        | st.sampled_from([b"[" * 50_000, b'{"model":' * 20_000, b'"\\ud800"', b"\xff\xfe{}"])
    )
    def one(body: bytes) -> None:
        fuzz.send(request_bytes(PATHS[0], {}, body, length=True))

    await fuzz.play(one, b"400")


async def test_headers(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler, fuzz = strict, Fuzz(gateway)

    @ROUNDS
    @given(head=headers, length=st.booleans())
    def one(head: dict[str, str], length: bool) -> None:
        body = json.dumps(CHAT).encode()
        fuzz.send(request_bytes(PATHS[0], head, body, length=length))

    await fuzz.play(one, b"200", b"400")


async def test_raw_bytes(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler, fuzz = strict, Fuzz(gateway)
    sound = request_bytes(PATHS[0], {}, json.dumps(CHAT).encode(), length=True)

    @ROUNDS
    @given(
        data=st.binary(max_size=300)
        | st.builds(
            lambda at, more: sound[:at] + more + sound[at + len(more) :],
            st.integers(0, len(sound)),
            st.binary(min_size=1, max_size=8),
        )
        | st.integers(0, len(sound)).map(lambda cut: sound[:cut])
        | st.sampled_from([b"GET " + b"/" * 100_000, b"A: " + b"x" * 200_000, b"\r\n" * 1000])
    )
    def one(data: bytes) -> None:
        fuzz.send(data)

    await fuzz.play(one, b"200", b"400")
