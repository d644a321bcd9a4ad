"""The relay against a scripted engine: what passes, what is put back, what each fault becomes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from aiohttp import web

from tests.server.gateway.scripted import (
    CHAT,
    DONE,
    ENGINE_NAME,
    PIRATE,
    USAGE,
    Gateway,
    ScriptedEngine,
    answer,
    chunk,
    sse,
    stream,
)


async def test_a_reference_reaches_the_engine_as_a_digest_and_comes_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 200
        document = await response.json()
    assert engine.received[0]["model"] == ENGINE_NAME
    assert document["model"] == "pirate:prod"
    assert response.headers["x-adapterctl-digest"] == PIRATE
    assert response.headers["x-adapterctl-version"] == "pirate:v1"
    await gateway.settled("adapterctl_prompt_tokens_total", 7, adapter="pirate")
    assert gateway.metric("adapterctl_completion_tokens_total", adapter="pirate") == 4
    assert gateway.metric("adapterctl_requests_in_flight", adapter="pirate") == 0


async def test_a_stream_passes_with_the_reference_put_back_and_its_usage_kept_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = stream
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        body = await response.read()
    assert engine.received[0]["stream_options"] == {"include_usage": True}
    assert body == chunk("a", "pirate:prod") + chunk("b", "pirate:prod") + DONE
    await gateway.settled("adapterctl_completion_tokens_total", 2, adapter="pirate")
    labels = {"adapter": "pirate"}
    assert gateway.metric("adapterctl_time_to_first_token_seconds_count", **labels) == 1
    assert (
        gateway.metric(
            "adapterctl_requests_total",
            adapter="pirate",
            lane="hot",
            route="/v1/chat/completions",
            outcome="ok",
        )
        == 1
    )


async def test_a_client_that_asks_for_the_usage_gets_it(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = stream
    request = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway.post("/v1/chat/completions", json=request) as response:
        body = await response.read()
    assert USAGE.replace(ENGINE_NAME.encode(), b"pirate:prod") in body


async def test_a_text_that_holds_the_engines_name_stays_as_it_is(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    said = f'the word "model":"{ENGINE_NAME}" in an answer'

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return await sse(request, [chunk(said), DONE])

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        first = (await response.read()).split(b"\n\n")[0]
    document = json.loads(first.removeprefix(b"data: "))
    assert document["choices"][0]["delta"]["content"] == said
    assert document["model"] == "pirate:prod"


async def test_an_early_failure_of_a_stream_keeps_its_status_and_names_the_reference(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        error = {"message": f"{ENGINE_NAME}: too long", "type": "BadRequestError", "code": 400}
        return web.json_response({"error": error}, status=400)

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["message"] == "pirate:prod: too long"
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


async def test_an_engine_error_without_json_still_has_openais_shape(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text="Internal Server Error", status=500)

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 500
        error = (await response.json())["error"]
    assert error["message"] == "Internal Server Error"
    assert error["type"] == "server_error"


async def test_an_adapter_the_engine_does_not_have_is_our_fault_to_explain(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        message = f"The model `{ENGINE_NAME}` does not exist."
        error = {"message": message, "type": "NotFoundError", "code": 404}
        return web.json_response({"error": error}, status=404)

    engine.handler = handler
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 409
        error = (await response.json())["error"]
    assert error["code"] == "adapter_not_loadable"
    assert "pirate:prod" in error["message"]


async def test_no_client_goes_before_the_others(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    headers = {"x-vllm-priority": "-100"}
    body = {**CHAT, "priority": -100}
    async with gateway.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
    # vLLM takes the header before the body's field.
    assert engine.headers[0]["x-vllm-priority"] == "0"


async def test_a_clients_key_does_not_reach_the_engine_and_its_request_id_does(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = answer
    headers = {"Authorization": "Bearer secret", "Cookie": "a=b", "X-Request-Id": "r-1"}
    async with gateway.post("/v1/chat/completions", json=CHAT, headers=headers) as response:
        assert response.headers["x-request-id"] == "r-1"
    sent = {name.lower(): value for name, value in engine.headers[0].items()}
    assert sent["x-request-id"] == "r-1"
    assert "authorization" not in sent
    assert "cookie" not in sent


async def test_any_json_string_survives(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    body = b'{"model":"tiny","prompt":"\\ud800 \\u0000 \xc3\xa9","seed":123456789012345678901}'
    async with gateway.post("/v1/completions", data=body) as response:
        assert response.status == 200
    assert engine.received[0]["prompt"] == "\ud800 \x00 é"
    assert engine.received[0]["seed"] == 123456789012345678901


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b"[]", 400, "invalid_request"),
        (b"\xff\xfe", 400, "invalid_request"),
        (b"[" * 50_000, 400, "invalid_request"),
        (b"{}", 400, "invalid_request"),
        (b'{"model": 7}', 400, "invalid_request"),
        (b'{"model": "pirat"}', 404, "model_not_found"),
        (b'{"model": "a b"}', 400, "invalid_reference"),
        (b'{"model": "pirate:nope"}', 404, "tag_not_found"),
        (b'{"model": "pirate:v9"}', 404, "version_not_found"),
        (b'{"model": "elsewhere"}', 409, "adapter_not_loadable"),
        (b'{"model": "weighty"}', 404, "not_deployed"),
        (b'{"model": "weighty:v2"}', 404, "not_deployed"),
        (b'{"model": "' + b"x" * 200_000 + b'"}', 413, "request_too_large"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else str(value),
)
async def test_what_is_wrong_with_a_request_is_said_in_openais_shape(
    gateway: Gateway, engine: ScriptedEngine, body: bytes, status: int, code: str
) -> None:
    async with gateway.post("/v1/chat/completions", data=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert engine.received == []
    if body == b'{"model": "pirat"}':
        assert "did you mean 'pirate'" in error["message"]


async def test_a_body_of_unknown_length_is_bounded_too(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def endless() -> Any:
        for _ in range(50):
            yield b" " * 10_000

    async with gateway.post("/v1/chat/completions", data=endless()) as response:
        assert response.status == 413
    assert engine.received == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/v1/nothing"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/invocations"),
        ("GET", "/nothing"),
    ],
)
async def test_what_is_not_in_the_table_does_not_reach_the_engine(
    gateway: Gateway, engine: ScriptedEngine, method: str, path: str
) -> None:
    async with gateway.client.request(method, gateway.url + path, json=CHAT) as response:
        assert response.status in {404, 405}
        error = (await response.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert engine.received == []


async def test_an_engine_that_is_gone_is_a_503_that_says_when_to_come_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    await engine.stop()
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert (await response.json())["error"]["code"] == "engine_unavailable"
    await engine.start()


async def test_tokenize_goes_where_vllm_has_it(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    async with gateway.post("/v1/tokenize", json={"model": "tiny", "prompt": "x"}) as response:
        assert response.status == 200
    assert engine.paths == ["/tokenize"]
    assert engine.received[0]["model"] == "tiny"


async def test_the_model_list_has_every_name_a_client_may_send(gateway: Gateway) -> None:
    async with gateway.get("/v1/models") as response:
        models = {entry["id"]: entry for entry in (await response.json())["data"]}
    assert sorted(models) == ["pirate", "pirate:latest", "pirate:prod", "tiny", "weighty:prod"]
    assert models["pirate"]["version"] == "v2"
    assert models["pirate:prod"]["digest"] == PIRATE
    assert models["pirate:prod"]["parent"] == "tiny"
    assert models["tiny"]["parent"] is None
    async with gateway.get("/v1/models/pirate:v1") as response:
        assert (await response.json())["tags"] == ["prod"]
    async with gateway.get("/v1/models/nobody") as response:
        assert response.status == 404
    async with gateway.get("/v1/models/weighty") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "not_deployed")


async def test_what_needs_an_engine_of_its_own_says_why_and_what_to_do(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """With a status that OpenAI's SDK takes as final: a retry cannot help."""
    engine.handler = answer
    client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none")
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="weighty", messages=[])
    await client.close()
    message = refused.value.body["message"]  # type: ignore[index]
    for part in ("'weighty' is weighty:v2", "lane merged", "DoRA rescales every row", "hot lane"):
        assert part in message
    async with gateway.post("/v1/chat/completions", json=CHAT | {"model": "weighty:v1"}) as first:
        assert first.status == 200
    assert len(engine.received) == 1
    labels = {"adapter": "none", "lane": "none", "route": "/v1/chat/completions"}
    name = "adapterctl_requests_total"
    await gateway.settled(name, 1.0, outcome="not_deployed", **labels)


async def test_health_readiness_and_metrics(gateway: Gateway) -> None:
    for path in ("/healthz", "/readyz"):
        async with gateway.get(path) as response:
            assert response.status == 200
    async with gateway.get("/metrics") as response:
        text = await response.text()
    assert 'adapterctl_engine_up{base="tiny"} 1.0' in text
    assert 'adapterctl_registry_entries{kind="version"} 5.0' in text
    async with gateway.get("/docs") as response:
        assert response.status == 200
    async with gateway.get("/openapi.json") as response:
        assert "/v1/chat/completions" in (await response.json())["paths"]


async def test_sixty_four_streams_at_once_do_not_mix(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        word = document["messages"][0]["content"]
        return await sse(request, [chunk(word, document["model"]) for _ in range(20)] + [DONE])

    engine.handler = handler
    names = ["pirate", "pirate:v1", "pirate:prod", "tiny"]

    async def one(index: int) -> None:
        name, word = names[index % 4], f"word-{index}"
        request = {"model": name, "messages": [{"role": "user", "content": word}], "stream": True}
        async with gateway.post("/v1/chat/completions", json=request) as response:
            body = await response.read()
        assert body == chunk(word, name) * 20 + DONE

    await asyncio.gather(*(one(index) for index in range(64)))


async def test_the_engine_waits_for_a_client_that_reads_slowly(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """No more of its answer is in memory than the buffers hold, and nothing of it is lost."""
    words = [f"{number} " + "x" * 50_000 for number in range(600)]
    written = 0

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        nonlocal written
        response = await sse(request, [])
        for word in words:
            await response.write(chunk(word, document["model"]))
            written += 1
        await response.write(DONE)
        return response

    engine.handler = handler
    async with gateway.post(
        "/v1/chat/completions", json={**CHAT, "stream": True}, read_bufsize=2**16
    ) as response:
        before = 0
        while written > before:
            before = written
            await asyncio.sleep(0.3)
        assert 0 < written < len(words) / 2
        found = await response.read()
    assert found == b"".join(chunk(word, str(CHAT["model"])) for word in words) + DONE
