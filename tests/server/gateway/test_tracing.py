"""Traces as a collector gets them: real OTLP over HTTP, decoded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from server.gateway.tracing import Tracing, tracing_of
from server.setting_values import traces_url
from server.settings import ServeSettings
from tests.server.gateway.otlp import Collector, collector
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, stream
from tests.server.gateway.served import Server, running

PATH = "/v1/chat/completions"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CLIENT = f"00-{TRACE}-b7ad6b7169203331"


@contextlib.asynccontextmanager
async def traced(
    gateway: Gateway, *, sample: float = 1.0
) -> AsyncIterator[tuple[Server, Collector, aiohttp.ClientSession]]:
    """A gateway that sends traces; all of them are there at the end."""
    async with collector() as found, aiohttp.ClientSession() as client:
        settings = ServeSettings(
            store=gateway.state.settings.store,
            base="tiny",
            otlp_endpoint=found.url,
            otlp_sample=sample,
        )
        tracing = tracing_of(settings)
        assert isinstance(tracing, Tracing)
        gateway.state.tracing = tracing
        async with running(gateway) as server:
            yield server, found, client
            await asyncio.to_thread(tracing.close)


async def asked(client: aiohttp.ClientSession, server: Server, body: Any, **headers: str) -> int:
    async with client.post(server.url + PATH, json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_client_gateway_and_engine_are_one_trace(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = stream
    async with traced(gateway) as (server, found, client):
        body = {**CHAT, "stream": True}
        state = {"tracestate": "vendor=1", "x-request-id": "r-9"}
        assert await asked(client, server, body, traceparent=f"{CLIENT}-01", **state) == 200
    sent = {name.lower(): value for name, value in engine.headers[-1].items()}
    own = await found.named(f"POST {PATH}")
    below = await found.named("engine")
    assert own.trace == below.trace == TRACE
    assert (own.parent, below.parent) == ("b7ad6b7169203331", own.id)
    assert sent["traceparent"] == f"00-{TRACE}-{below.id}-01"
    assert sent["tracestate"] == "vendor=1"
    assert own.service == "adapterctl"
    expected = {
        "http.request.method": "POST",
        "http.route": PATH,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "pirate:prod",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "adapterctl.adapter": "pirate",
        "adapterctl.version": "pirate:v1",
        "adapterctl.lane": "hot",
        "adapterctl.outcome": "ok",
        "adapterctl.request_id": "r-9",
    }
    assert own.attributes.items() >= expected.items()
    assert below.attributes == {"adapterctl.lane": "hot"}
    assert below.events == ["first token"]
    assert not own.failed
    # Of the prompt, nothing.
    assert CHAT["messages"][0]["content"] not in [  # type: ignore[index]
        value for span in found.spans for value in span.attributes.values()
    ]


async def test_without_a_context_a_trace_begins_here_and_failures_show(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError

    engine.handler = answer
    async with traced(gateway) as (server, found, client):
        assert await asked(client, server, CHAT, traceparent="nonsense") == 200
        engine.handler = broken
        assert await asked(client, server, CHAT) >= 500
        assert await asked(client, server, {**CHAT, "model": "nobody"}) == 404
        for path in ("/healthz", "/v1/models", "/nowhere/at/all"):
            async with client.get(server.url + path) as response:
                await response.read()
    named = [span.name for span in found.spans if span.name != "engine"]
    # Nobody follows health checks; what is no route has no name of its own.
    assert sorted(named) == ["GET", "GET /v1/models", *[f"POST {PATH}"] * 3]
    outcomes = {
        span.attributes["adapterctl.outcome"]: span
        for span in found.spans
        if span.attributes.get("http.route") == PATH
    }
    failed = {name: span.failed for name, span in outcomes.items()}
    assert failed == {"ok": False, "engine_500": True, "model_not_found": False}
    assert len({span.trace for span in outcomes.values()}) == 3
    assert all(span.parent == "" for span in outcomes.values())


@pytest.mark.parametrize(
    ("flag", "sample", "traces"), [("00", 1.0, 0), ("01", 0.0, 2), ("", 0.0, 0)]
)
async def test_who_decides_what_is_traced(
    gateway: Gateway, engine: ScriptedEngine, flag: str, sample: float, traces: int
) -> None:
    engine.handler = answer
    headers = {"traceparent": f"{CLIENT}-{flag}"} if flag else {}
    async with traced(gateway, sample=sample) as (server, found, client):
        assert await asked(client, server, CHAT, **headers) == 200
    assert len(found.spans) == traces
    # The engine is told either way, so that it decides the same.
    sent = {name.lower(): value for name, value in engine.headers[-1].items()}
    flags = int(sent["traceparent"].rpartition("-")[2], 16)
    assert flags & 1 == (traces > 0)


def test_without_an_endpoint_nothing_is_traced(gateway: Gateway) -> None:
    assert tracing_of(gateway.state.settings) is None


@pytest.mark.parametrize("endpoint", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"])
def test_where_traces_go(endpoint: str) -> None:
    assert traces_url(endpoint) == "http://c:4318/v1/traces"
