"""`/admin/v1/keys`: what `adapterctl keys` does, over HTTP."""

from __future__ import annotations

from fastapi import APIRouter, Response

from adapters.catalog import Catalog
from server.gateway.key_models import KeyMade, KeyRequest, KeyShown, make_key, shown_keys


def add_key_routes(router: APIRouter, catalog: Catalog) -> None:
    """Making, listing and revoking keys."""

    @router.get("/keys", summary="List the API keys")
    def keys() -> list[KeyShown]:
        return shown_keys(catalog)

    @router.post("/keys", summary="Make an API key; its secret is answered once")
    def create(body: KeyRequest, response: Response) -> KeyMade:
        response.headers["cache-control"] = "no-store"
        return make_key(catalog, body)

    @router.delete("/keys/{key_id}", summary="Revoke an API key")
    def revoke(key_id: str) -> KeyShown:
        return KeyShown.of(catalog.revoke_key(key_id))
