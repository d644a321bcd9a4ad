"""Deployments and routes of the example registry, and what scripted engines say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from adapters.frozen import Lane
from adapters.lanes.models import Deployment, Limits, Route, Split
from tests.server.gateway.scripted import NOW, Gateway, Handler
from tests.server.gateway.scripted_pool import ScriptedPlace

# The merged model of pirate:v1, and another one of it; that of weighty:v2.
MODEL = "sha256:" + "6" * 64
MODEL_AWQ = "sha256:" + "7" * 64
WEIGHTY_MODEL = "sha256:" + "8" * 64
PATH = "/v1/chat/completions"


def deployment(
    adapter: str, number: int, lane: Lane | None, model: str | None = None, **values: Any
) -> Deployment:
    return Deployment(
        adapter=adapter, number=number, lane=lane, model=model, at=NOW, actor="test", **values
    )


def deploy(gateway: Gateway, one: Deployment) -> ScriptedPlace | None:
    """Put it into the registry; the place of its model's engine."""
    known = gateway.registry.snapshot.adapters[one.adapter].deployments
    place = None if one.model is None else gateway.places.of(one.model)
    if place is not None and place.engine.handler is None:
        place.engine.handler = says("merged")
    gateway.registry.change(one.adapter, deployments={**known, one.number: one})
    return place


def merged(gateway: Gateway, adapter: str = "pirate", model: str = MODEL) -> ScriptedPlace:
    """Deploy pirate:v1, or weighty:v2, in the merged lane."""
    number = 1 if adapter == "pirate" else 2
    place = deploy(gateway, deployment(adapter, number, Lane.MERGED, model))
    assert place is not None
    return place


def route(*splits: Split, **values: Any) -> Route:
    """Of pirate:prod, which means v1; nobody watches unless `limits` says so."""
    return Route(id=7, adapter="pirate", tag="prod", splits=splits, at=NOW, actor="test", **values)


def watched(*splits: Split, **values: Any) -> Route:
    return route(*splits, limits=Limits(), **values)


def says(word: str) -> Handler:
    """An engine whose whole answers hold `word`."""

    async def handler(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(
            {
                "model": document["model"],
                "choices": [{"message": {"content": word}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        )

    return handler


async def ask(
    gateway: Gateway, model: str = "pirate:prod", headers: dict[str, str] | None = None, **body: Any
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, document and headers of one answer."""
    request = {"model": model, "messages": [{"role": "user", "content": "hi"}], **body}
    async with gateway.post(PATH, json=request, headers=headers or {}) as response:
        names = {name.lower(): value for name, value in response.headers.items()}
        return response.status, await response.json(), names


def said(document: dict[str, Any]) -> str:
    word: str = document["choices"][0]["message"]["content"]
    return word


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def released(gateway: Gateway) -> bool:
    """Nothing is held anywhere."""
    return not gateway.state.lanes.in_flight() and all(
        (one.in_flight, one.waiting) == (0, 0) for one in gateway.pool.statuses()
    )
