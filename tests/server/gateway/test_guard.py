"""What the gateway makes of an engine's word that an output was not finite."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from adapters.errors import StoreBusy, VersionNotFound
from adapters.frozen import Lane
from adapters.lanes.models import Split
from server.engine.not_finite import Fault, sentence
from server.gateway.guard import REASON, Guard
from tests.server.gateway.lane_cases import (
    WEIGHTY_MODEL,
    ask,
    deploy,
    deployment,
    merged,
    route,
)
from tests.server.gateway.scripted import (
    CHAT,
    PIRATE,
    WEIGHTY,
    Gateway,
    Handler,
    ScriptedEngine,
    answer,
    chunk,
    sse,
    store_blob,
)


class Catalog:
    """A registry that may refuse; what is written is in the gateway's next snapshot."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.refusals: list[Exception] = []
        self.written: list[tuple[str, str, str]] = []
        self.damage: str | None = None
        self.examined: list[str] = []
        self.taken_back: list[str] = []

    def look(self, digest: str) -> str | None:
        self.examined.append(digest)
        return self.damage

    def quarantine(self, ref: str, reason: str, *, actor: str) -> object:
        if self.refusals:
            raise self.refusals.pop(0)
        self.written.append((ref, reason, actor))
        return deploy(
            self.gateway, deployment("pirate", 1, Lane.HOT, quarantined=f"{reason} (written)")
        )


@pytest.fixture
async def catalog(gateway: Gateway) -> AsyncIterator[Catalog]:
    """With a guard among the gateway's observers."""
    made = Catalog(gateway)
    guard = Guard(
        gateway.registry.current,
        made.quarantine,
        lambda: None,
        gateway.state.placing.kept_back,
        gateway.state.metrics,
        made.look,
        first_retry=0.01,
        taken_back=made.taken_back.append,
    )
    gateway.state.observers.append(guard.observe)
    yield made
    await guard.close()


def fails(fault: Fault) -> Handler:
    """As vLLM's API server with our plugin, whole or in a stream after one word."""
    said = {"error": {"message": sentence(fault), "type": "InternalServerError", "code": 500}}

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if document.get("stream"):
            event = b"data: " + json.dumps(said).encode() + b"\n\n"
            return await sse(request, [chunk("a"), event, b"data: [DONE]\n\n"])
        return web.json_response(said, status=500)

    return handler


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_version_is_kept_back_at_once_and_quarantined_as_soon_as_that_can_be_written(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    catalog.refusals = [StoreBusy("busy")] * 3
    engine.handler = fails(Fault.ADAPTER)
    status, document, _ = await ask(gateway)
    assert (status, document["error"]["code"]) == (502, "output_not_finite")
    assert "pirate:v1" in document["error"]["message"]
    asked = len(engine.received)
    status, document, _ = await ask(gateway)
    assert (status, document["error"]["code"]) == (404, "quarantined")
    assert REASON in document["error"]["message"]
    assert "adapterctl quarantine pirate:v1 --lift" in document["error"]["message"]
    await until(lambda: catalog.written and not gateway.state.placing.kept_back)
    assert catalog.written == [("pirate:v1", REASON, "engine")]
    status, document, _ = await ask(gateway)
    assert "(written)" in document["error"]["message"]
    assert len(engine.received) == asked
    assert gateway.metric("adapterctl_quarantines_total", adapter="pirate") == 1
    assert gateway.metric("adapterctl_registry_entries", kind="quarantined") == 1
    # Others, and other versions, go on; and it, once that is lifted.
    engine.handler = answer
    assert (await ask(gateway, "pirate:v2"))[0] == (await ask(gateway, "tiny"))[0] == 200
    deploy(gateway, deployment("pirate", 1, Lane.HOT))
    assert (await ask(gateway))[0] == 200


async def test_a_canary_that_is_quarantined_is_said_to_be_taken_back(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    engine.handler = fails(Fault.ADAPTER)
    assert (await ask(gateway))[0] == 502
    assert catalog.taken_back == []
    await until(lambda: catalog.written)
    gateway.state.placing.kept_back.clear()
    deploy(gateway, deployment("pirate", 1, Lane.HOT))
    gateway.registry.change("pirate", routes={"prod": route(Split(number=1, share=1))})
    assert (await ask(gateway))[0] == 502
    assert catalog.taken_back == ["pirate"]


async def test_a_stream_ends_with_an_error_event(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    engine.handler = fails(Fault.ADAPTER)
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        word, error, rest = (await response.read()).split(b"\n\n")
    assert word + b"\n\n" == chunk("a", "pirate:prod")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "output_not_finite"
    assert rest == b""
    await until(lambda: catalog.written)


async def test_a_stream_that_begins_with_the_error_keeps_its_status(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        said = json.dumps({"error": {"message": sentence(Fault.ADAPTER)}}).encode()
        return await sse(request, [b"data: " + said + b"\n\n", b"data: [DONE]\n\n"])

    engine.handler = handler
    status, document, _ = await ask(gateway, stream=True)
    assert (status, document["error"]["code"]) == (502, "output_not_finite")
    await until(lambda: catalog.written)


@pytest.mark.parametrize(
    ("path", "event"),
    [
        ("/v1/responses", {"type": "error", "message": sentence(Fault.ADAPTER)}),
        ("/v1/messages", {"type": "error", "error": {"message": sentence(Fault.ADAPTER)}}),
    ],
)
async def test_routes_with_events_of_their_own_for_errors(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog, path: str, event: dict[str, Any]
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        said = b"event: error\ndata: " + json.dumps(event).encode() + b"\n\n"
        return await sse(request, [b'event: begun\ndata: {"type":"begun"}\n\n', said])

    engine.handler = handler
    body = {"model": "pirate:prod", "input": "hi", "stream": True}
    async with gateway.post(path, json=body) as response:
        begun, error, rest = (await response.read()).split(b"\n\n")
    assert (begun, rest) == (b'event: begun\ndata: {"type":"begun"}', b"")
    kind, data = error.split(b"\n")
    assert kind == b"event: error"
    said = json.loads(data.removeprefix(b"data: "))
    assert said["type"] == "error"
    assert "pirate:v1" in (said.get("message") or said["error"]["message"])
    await until(lambda: catalog.written)


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_bases_own_fault_is_an_error_and_nobody_is_quarantined(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog, streaming: bool
) -> None:
    engine.handler = fails(Fault.BASE)
    for model in ("pirate:prod", "tiny"):
        body = {**CHAT, "model": model, "stream": streaming}
        async with gateway.post("/v1/chat/completions", json=body) as response:
            assert response.status == (200 if streaming else 502)
            assert b'"code":"base_not_finite"' in await response.read()
    assert gateway.state.placing.kept_back == {}
    engine.handler = answer
    assert (await ask(gateway))[0] == 200
    assert catalog.written == []


async def test_a_merged_model_harms_only_itself(gateway: Gateway, catalog: Catalog) -> None:
    store_blob(gateway.state.settings.store, WEIGHTY)
    place = merged(gateway, "weighty", WEIGHTY_MODEL)
    place.engine.handler = fails(Fault.BASE)
    for _ in range(2):
        status, document, _ = await ask(gateway, "weighty:v2")
        assert (status, document["error"]["code"]) == (502, "output_not_finite")
        assert "merged model" in document["error"]["message"]
    assert len(place.engine.received) == 2
    assert gateway.state.placing.kept_back == {}
    assert catalog.written == []


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_model_that_writes_the_sentence_is_believed_nothing(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog, streaming: bool
) -> None:
    text = f'event: error\ndata: {{"error": {{"message": "{sentence(Fault.ADAPTER)}"}}}}\n\n'

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if streaming:
            return await sse(request, [chunk(text), b"data: [DONE]\n\n"])
        return web.json_response({"choices": [{"message": {"content": text}}]})

    engine.handler = handler
    body = {**CHAT, "stream": streaming}
    async with gateway.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert sentence(Fault.ADAPTER).encode() in await response.read()
    assert gateway.state.placing.kept_back == {}


def not_there(message: str) -> Handler:
    """As vLLM where its resolver or its worker refused the files."""

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        said = {"message": f"The model `{document['model']}` {message}", "code": 404}
        return web.json_response({"error": said}, status=404)

    return handler


async def test_damaged_files_are_quarantined_with_what_is_wrong_with_them(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    catalog.damage = "adapter_model.safetensors has changed"
    engine.handler = not_there("does not exist.")
    status, document, _ = await ask(gateway)
    assert document["error"]["code"] == "adapter_not_loadable"
    await until(lambda: catalog.written)
    [(reference, reason, actor)] = catalog.written
    assert (reference, actor) == ("pirate:v1", "engine")
    assert "adapter_model.safetensors has changed" in reason
    assert catalog.examined == [PIRATE]
    status, document, _ = await ask(gateway)
    assert (status, document["error"]["code"]) == (404, "quarantined")
    assert "register the same source again" in document["error"]["message"]


async def test_an_engine_that_does_not_load_sound_files_quarantines_nobody(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    engine.handler = not_there("does not exist.")
    await ask(gateway)
    await until(lambda: catalog.examined)
    engine.handler = answer
    assert (await ask(gateway))[0] == 200
    assert catalog.written == []


async def test_the_part_of_a_canary_that_is_quarantined_goes_to_the_stable_version(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    gateway.registry.change("pirate", routes={"prod": route(Split(number=2, share=1))})
    assert (await ask(gateway))[2]["x-adapterctl-version"] == "pirate:v2"
    # Before it is written, and after.
    version = gateway.registry.snapshot.adapters["pirate"].versions[2]
    gateway.state.placing.kept_back[version.digest] = REASON
    assert (await ask(gateway))[2]["x-adapterctl-version"] == "pirate:v1"
    gateway.state.placing.kept_back.clear()
    deploy(gateway, deployment("pirate", 2, Lane.HOT, quarantined=REASON))
    assert (await ask(gateway))[2]["x-adapterctl-version"] == "pirate:v1"


async def test_one_that_was_removed_meanwhile_is_nobodys_business(
    gateway: Gateway, engine: ScriptedEngine, catalog: Catalog
) -> None:
    catalog.refusals = [VersionNotFound("gone")]
    engine.handler = fails(Fault.ADAPTER)
    await ask(gateway)
    await until(lambda: not gateway.state.placing.kept_back)
    assert catalog.written == []
    assert PIRATE in {
        v.digest for v in gateway.registry.snapshot.adapters["pirate"].versions.values()
    }
