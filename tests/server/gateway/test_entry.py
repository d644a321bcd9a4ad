"""Around every request: ids, other sites' pages, one line in the log."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.request_ids import request_id
from server.gateway.sse import EventStream
from tests.server.gateway.scripted import (
    CHAT,
    DONE,
    USAGE,
    Gateway,
    ScriptedEngine,
    answer,
    chunk,
    sse,
    stream,
)
from tests.server.gateway.served import running

PATH = "/v1/chat/completions"
PAGE = "https://app.example.com"


@given(st.text(max_size=200))
def test_an_id_is_the_clients_own_or_a_new_one(said: str) -> None:
    found = request_id(said)
    assert re.fullmatch(r"[!-~]{1,128}", found)
    assert found == said or re.fullmatch(r"[0-9a-f]{32}", found)
    assert request_id(None) != request_id(None)


@pytest.mark.parametrize("said", ["a b", "x" * 129, "ä", "", 'a"b', "a\tb", "a;b"])
async def test_an_id_that_could_be_something_else_is_replaced(
    gateway: Gateway, engine: ScriptedEngine, said: str
) -> None:
    engine.handler = answer
    headers = {"x-request-id": said.encode("utf-8").decode("latin-1")}
    async with gateway.post(PATH, json=CHAT, headers=headers) as response:
        found = response.headers["x-request-id"]
    assert len(found) == 32
    sent = {name.lower(): value for name, value in engine.headers[-1].items()}
    assert sent["x-request-id"] == found


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/nowhere", "/metrics"])
async def test_every_answer_has_an_id(gateway: Gateway, path: str) -> None:
    async with gateway.client.get(gateway.url + path, headers={"x-request-id": "r-7"}) as response:
        assert response.headers.getall("x-request-id") == ["r-7"]


async def test_errors_and_streams_have_one_too(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = stream
    headers = {"x-request-id": "r-8"}
    for body in (b"{", b'{"model": "nobody"}', b'{"model": "pirate", "stream": true}'):
        async with gateway.post(PATH, data=body, headers=headers) as response:
            await response.read()
            assert response.headers.getall("x-request-id") == ["r-8"]


async def test_no_other_sites_page_gets_in_unless_it_is_named(gateway: Gateway) -> None:
    asked = {"origin": PAGE, "access-control-request-method": "POST"}
    async with gateway.client.options(gateway.url + PATH, headers=asked) as response:
        assert response.status == 405
        assert not any(name.lower().startswith("access-control") for name in response.headers)


async def test_a_named_page_gets_in_also_to_read_errors(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    gateway.state.settings = gateway.state.settings.model_copy(update={"cors_origins": (PAGE,)})
    async with running(gateway) as server, aiohttp.ClientSession() as client:
        asked = {
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        async with client.options(server.url + PATH, headers=asked) as response:
            assert response.status == 200
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "authorization" in response.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in response.headers
        for model, status in (("pirate", 200), ("nobody", 404)):
            body = {**CHAT, "model": model}
            origin = {"origin": PAGE}
            async with client.post(server.url + PATH, json=body, headers=origin) as response:
                assert response.status == status
                assert response.headers["access-control-allow-origin"] == PAGE
                assert "x-request-id" in response.headers["access-control-expose-headers"]
        other = {**asked, "origin": "https://evil.example.com"}
        async with client.options(server.url + PATH, headers=other) as response:
            assert response.status == 400
            assert "access-control-allow-origin" not in response.headers


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found: list[Any] = [getattr(record, "fields", None) for record in caplog.records]
    return [line for line in found if line is not None]


async def test_a_line_for_each_request(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server")
    engine.handler = stream
    body = {**CHAT, "stream": True}
    async with gateway.post(PATH, json=body, headers={"x-tenant": "acme"}) as response:
        await response.read()
        digest = response.headers["x-adapterctl-digest"]
    async with gateway.post(PATH, json={**CHAT, "model": "nobody"}) as response:
        assert response.status == 404
    async with gateway.get("/healthz") as response:
        assert response.status == 200
    async with gateway.get("/v1/models") as response:
        assert response.status == 200
    await gateway.settled("adapterctl_completion_tokens_total", 2, adapter="pirate")
    streamed, unknown, models = lines(caplog)
    expected = {
        "method": "POST",
        "path": PATH,
        "status": 200,
        "client": "127.0.0.1",
        "outcome": "ok",
        "tenant": "acme",
        "model": "pirate:prod",
        "adapter": "pirate",
        "version": "pirate:v1",
        "digest": digest,
        "lane": "hot",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }
    times = {name: streamed.pop(name) for name in ("seconds", "waited", "first_token")}
    assert streamed == expected
    assert 0 <= times["waited"] <= times["seconds"]
    assert 0 < times["first_token"] <= times["seconds"]
    assert (unknown["status"], unknown["outcome"]) == (404, "model_not_found")
    assert unknown["model"] == "nobody"
    assert (models["path"], models["status"], models["outcome"]) == ("/v1/models", 200, "ok")


async def test_a_stream_that_breaks_says_how(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server")

    async def dies(request: Any, _: Any) -> Any:
        response = await sse(request, [chunk("a")])
        request.transport.abort()
        return response

    engine.handler = dies
    async with gateway.post(PATH, json={**CHAT, "stream": True}) as response:
        await response.read()
    labels = {"adapter": "pirate", "lane": "hot", "route": PATH, "outcome": "engine_died"}
    await gateway.settled("adapterctl_requests_total", 1, **labels)
    (line,) = lines(caplog)
    # The status was sent when nobody knew yet.
    assert (line["status"], line["outcome"]) == (200, "engine_died")


async def test_prompts_are_logged_only_when_that_is_switched_on(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    engine.handler = lambda request, _: sse(request, [chunk("a"), USAGE, DONE])
    secret = {"model": "pirate", "prompt": "the-secret", "stream": True}
    async with gateway.post("/v1/completions", json=secret) as response:
        await response.read()
    async with gateway.post("/v1/completions", data=b'{"prompt": "the-secret", ') as response:
        assert response.status == 400
    found = lines(caplog)
    assert len(found) == 2
    assert "the-secret" not in repr(found) + caplog.text
    gateway.state.settings = gateway.state.settings.model_copy(update={"log_prompts": True})
    async with gateway.post("/v1/completions", json=secret) as response:
        await response.read()
    await gateway.settled("adapterctl_completion_tokens_total", 4, adapter="pirate")
    assert lines(caplog)[-1]["prompt"] == "the-secret"


@pytest.mark.parametrize("asked", [CHAT, {**CHAT, "stream": True}], ids=["whole", "streamed"])
async def test_a_fault_of_our_own_is_an_error_and_in_the_log(
    gateway: Gateway,
    engine: ScriptedEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
) -> None:
    engine.handler = stream if "stream" in asked else answer
    caplog.set_level("INFO")

    def broken(*_: object) -> None:
        raise RuntimeError("never foreseen")

    monkeypatch.setattr("server.gateway.settle.Exchange.sent", broken)
    async with gateway.post(PATH, json=asked) as response:
        assert response.status == 500
        said = (await response.json())["error"]["message"]
    assert said == "this is a fault in the server; its log has the details"
    [line] = lines(caplog)
    assert (line["status"], line["outcome"]) == (500, "internal_error")
    assert "never foreseen" in caplog.text


async def test_a_fault_in_the_middle_of_a_stream_breaks_it_off_and_is_in_the_log(
    gateway: Gateway,
    engine: ScriptedEngine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed, fed = EventStream.feed, 0

    async def in_parts(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        response = await sse(request, [chunk("a")])
        while not fed:
            await asyncio.sleep(0.01)
        await response.write(chunk("b") + DONE)
        return response

    engine.handler = in_parts

    def broken(self: EventStream, data: bytes) -> bytes:
        nonlocal fed
        fed += 1
        if fed > 1:
            raise RuntimeError("never foreseen")
        return feed(self, data)

    monkeypatch.setattr(EventStream, "feed", broken)
    async with gateway.post(PATH, json={**CHAT, "stream": True}) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert "never foreseen" in caplog.text
    # Its place at the engine is given back.
    assert sum(gateway.state.in_flight.values()) == 0
