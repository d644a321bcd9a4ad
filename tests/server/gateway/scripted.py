"""A gateway on loopback in front of a scripted engine on a unix socket, both over real HTTP.

The real engine is in tests/engine; here the engine's part is scripted because the tests need it
to fail at one exact point.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from adapters.frozen import Lane
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from adapters.registry.snapshot import Snapshot
from adapters.serving.document import SERVING_FILE, Serving
from adapters.store.content import CONTENT_FILE, Content, file_digest
from adapters.store.layout import StoreLayout
from server.engine.pool import EnginePool
from server.gateway.client_connection import ClientConnection, ClientLimits, ConnectionRules
from server.gateway.state import GatewayState

if TYPE_CHECKING:
    from tests.server.gateway.scripted_pool import ScriptedPlaces

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BASE_DIGEST = "sha256:" + "b" * 64
PIRATE = "sha256:" + "1" * 64
PIRATE_2 = "sha256:" + "2" * 64
BIG = "sha256:" + "3" * 64
FOREIGN = "sha256:" + "4" * 64
WEIGHTY = "sha256:" + "5" * 64
ENGINE_NAME = "sha256-" + "1" * 64

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


def base_record(name: str = "tiny", digest: str = BASE_DIGEST) -> BaseRecord:
    return BaseRecord(
        name=name, path="/nowhere", digest=digest, architecture="LlamaForCausalLM", added_at=NOW
    )


def version_record(
    adapter: str, number: int, digest: str, *, base: str = "tiny", rank: int = 8
) -> VersionRecord:
    return VersionRecord(
        adapter=adapter,
        number=number,
        digest=digest,
        base=base,
        base_digest=BASE_DIGEST if base == "tiny" else "sha256:" + "c" * 64,
        format="peft",
        method="lora",
        lane=Lane.HOT,
        rank=rank,
        size_bytes=1000,
        registered_at=NOW,
    )


def example_snapshot() -> Snapshot:
    """One serving base, one other, six versions, one of them for the merged lane."""
    pirate = AdapterRecord(
        name="pirate",
        default_tag="latest",
        versions={1: version_record("pirate", 1, PIRATE), 2: version_record("pirate", 2, PIRATE_2)},
        tags={"latest": 2, "prod": 1},
    )
    elsewhere = AdapterRecord(
        name="elsewhere",
        default_tag="latest",
        versions={1: version_record("elsewhere", 1, FOREIGN, base="other")},
        tags={"latest": 1},
    )
    bases = {
        "tiny": base_record(),
        "other": base_record("other", "sha256:" + "c" * 64),
    }
    return Snapshot(bases, {"pirate": pirate, "elsewhere": elsewhere, "weighty": _weighty()}, 1)


def _weighty() -> AdapterRecord:
    """Plain LoRA at first, then DoRA, which this server cannot answer."""
    dora = version_record("weighty", 2, WEIGHTY).model_copy(
        update={
            "method": "dora",
            "lane": Lane.MERGED,
            "rank": None,
            "reason": "DoRA rescales every row of the merged weight",
        }
    )
    return AdapterRecord(
        name="weighty",
        default_tag="latest",
        versions={1: version_record("weighty", 1, BIG), 2: dora},
        tags={"latest": 2, "prod": 1},
    )


def store_blob(root: Path, digest: str, serving: Serving | None = None) -> None:
    """A version's directory as far as the gateway looks into it."""
    blob = StoreLayout(root).blob(digest)
    blob.mkdir(parents=True, exist_ok=True)
    files = {"adapter_model.safetensors": "sha256:" + "0" * 64}
    if serving is not None:
        (blob / SERVING_FILE).write_bytes(serving.encode())
        files[SERVING_FILE] = file_digest(blob / SERVING_FILE)
    (blob / CONTENT_FILE).write_bytes(Content(base=BASE_DIGEST, files=files).encode())


@dataclass
class ScriptedEngine:
    """Answers as the test's handler says; remembers what it was sent and who hung up."""

    socket: Path
    handler: Handler | None = None
    received: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{tail:.*}", self._post)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.socket)).start()

    async def stop(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        document = json.loads(await request.read())
        self.received.append(document)
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        assert self.handler is not None
        try:
            return await self.handler(request, document)
        except (asyncio.CancelledError, ConnectionResetError):
            self.aborted.set()
            raise


async def sse(request: web.Request, events: list[bytes]) -> web.StreamResponse:
    """A stream of ready-made events, each flushed on its own."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
        await asyncio.sleep(0.005)
    return response


CHAT = {"model": "pirate:prod", "messages": [{"role": "user", "content": "hi"}]}


def chunk(text: str, model: str = ENGINE_NAME) -> bytes:
    document = {"id": "c", "model": model, "choices": [{"delta": {"content": text}}]}
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


USAGE = (
    b'data: {"id":"c","choices":[],"model":"' + ENGINE_NAME.encode() + b'",'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
)
DONE = b"data: [DONE]\n\n"


async def answer(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    return web.json_response(
        {
            "model": document["model"],
            "choices": [{"message": {"content": "arr"}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11},
        }
    )


async def stream(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    return await sse(request, [chunk("a"), chunk("b"), USAGE, DONE])


class Registry:
    """The snapshot that the gateway sees; a test puts another one in its place."""

    def __init__(self, snapshot: Snapshot):
        self.snapshot = snapshot

    def current(self) -> Snapshot:
        return self.snapshot

    def change(self, adapter: str, **values: Any) -> None:
        """A newer snapshot in which the adapter has these fields instead."""
        old = self.snapshot
        adapters = dict(old.adapters)
        adapters[adapter] = adapters[adapter].model_copy(update=values)
        self.snapshot = Snapshot(old.bases, adapters, old.generation + 1)


@dataclass
class Gateway:
    """The gateway under test: where it is, its metrics, its registry and its merged engines."""

    url: str
    state: GatewayState
    client: aiohttp.ClientSession
    registry: Registry
    places: ScriptedPlaces
    pool: EnginePool

    def post(self, path: str, **keywords: Any) -> Any:
        return self.client.post(self.url + path, **keywords)

    def get(self, path: str) -> Any:
        return self.client.get(self.url + path)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of its series that have these labels, whatever others they have."""
        return sum(
            sample.value
            for family in self.state.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def settled(self, name: str, expected: float, **labels: str) -> None:
        """Wait for a metric that is written when the server has let go of the request."""
        async with asyncio.timeout(5):
            while self.metric(name, **labels) != expected:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def serving(app: FastAPI, *, write_timeout: float = 60.0) -> AsyncIterator[str]:
    """The application on a free loopback port, by uvicorn as in production."""
    rules = ConnectionRules(ClientLimits(write_timeout=write_timeout))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=ClientConnection.under(rules),
            log_level="warning",
            access_log=False,
            lifespan="off",
        )
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(5):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
