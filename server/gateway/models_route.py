"""`/v1/models`: the base, its adapters, their tags; one object a name a client may send."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, Request, Security
from fastapi.security import HTTPBearer

from adapters.compositions import is_mix
from adapters.errors import AdapterctlError
from adapters.models import AdapterRecord, BaseRecord, VersionRecord
from server.gateway.placing import Ways
from server.gateway.state import GatewayState

# For /docs only: whether the key is a good one is the callers' business.
_BEARER = Security(HTTPBearer(auto_error=False, description="An API key."))


def models_router(state: GatewayState) -> APIRouter:
    """The two routes of OpenAI's model list."""
    router = APIRouter(tags=["openai"], dependencies=[_BEARER])

    @router.get("/v1/models", summary="What can be asked for")
    async def list_models(request: Request) -> dict[str, Any]:
        caller = state.callers.caller(request.headers)
        adapters = state.snapshot().adapters.values()
        data = [_base(state.base)] if caller.allows(state.base.name) else []
        for adapter in adapters:
            # A sum that somebody's request made is nothing to choose from.
            if not is_mix(adapter.name) and caller.allows(adapter.name):
                data.extend(_entries(state, adapter))
        return {"object": "list", "data": data}

    @router.get("/v1/models/{reference:path}", summary="One reference")
    async def one_model(request: Request, reference: str) -> dict[str, Any]:
        caller = state.callers.caller(request.headers)
        snapshot = state.snapshot()
        resolved = snapshot.resolve(reference, caller.allows)
        if resolved.version is None:
            return _base(resolved.base)
        adapter = snapshot.adapters[resolved.version.adapter]
        ways = state.placing.of_version(reference, adapter, resolved.version, None)
        return _version(reference, resolved.version, adapter.tags, ways)

    return router


def _base(base: BaseRecord) -> dict[str, Any]:
    return {
        "id": base.name,
        "object": "model",
        "created": int(base.added_at.timestamp()),
        "owned_by": "adapterctl",
        "parent": None,
        "root": base.name,
        "version": None,
        "digest": base.digest,
        "lane": None,
        "tags": [],
    }


def _entries(state: GatewayState, adapter: AdapterRecord) -> list[dict[str, Any]]:
    """The adapter's own name (its default tag), then NAME:TAG for each tag."""
    entries = []
    default = adapter.tags.get(adapter.default_tag)
    names = [(adapter.name, default)] if default is not None else []
    names += [(f"{adapter.name}:{tag}", number) for tag, number in sorted(adapter.tags.items())]
    for name, number in names:
        version = adapter.versions[number]
        with contextlib.suppress(AdapterctlError):
            ways = state.placing.of_version(name, adapter, version, None)
            entries.append(_version(name, version, adapter.tags, ways))
    return entries


def _version(name: str, version: VersionRecord, tags: dict[str, int], ways: Ways) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(version.registered_at.timestamp()),
        "owned_by": "adapterctl",
        "parent": version.base,
        "root": version.adapter,
        "version": version.label,
        "digest": version.digest,
        "lane": ways.lane,
        "tags": sorted(tag for tag, number in tags.items() if number == version.number),
    }
