"""Who calls: keys, a trusted proxy's header, and nobody in particular."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from adapters.catalog import Catalog
from adapters.errors import InvalidRequest
from adapters.registry.snapshot import Snapshot, SnapshotWatcher
from adapters.tenants import DEFAULT_TENANT, is_tenant
from server.gateway.callers import Caller, Callers
from server.gateway.observing import Observation
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, stream

NOBODY = Caller("default", 1.0, None)
EMPTY = Snapshot({}, {}, 0)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.init(tmp_path / "store") as catalog:
        yield catalog


@pytest.fixture
def watcher(catalog: Catalog) -> Iterator[SnapshotWatcher]:
    """Never looks by itself."""
    watcher = SnapshotWatcher(catalog.layout.root, interval=3600)
    watcher.start()
    yield watcher
    watcher.stop()


def test_a_key_says_the_tenant_until_it_is_revoked(
    catalog: Catalog, watcher: SnapshotWatcher
) -> None:
    callers = Callers(lambda: watcher.current, weights={"acme": 4})
    key_id, secret = catalog.create_key(["inference"], "app", "acme")
    _, other = catalog.create_key(["inference"], "old")
    bearer = Headers({"authorization": f"Bearer {secret}"})
    assert callers.caller(bearer) == NOBODY  # Not in the snapshot yet: the disk is not read.
    watcher.refresh()
    acme = Caller("acme", 4.0, key_id)
    assert callers.caller(bearer) == acme
    assert callers.caller(Headers({"authorization": f"bearer  {secret} "})) == acme
    assert callers.caller(Headers({"x-api-key": secret})) == acme
    assert callers.caller(Headers({"authorization": f"Bearer {other}"})).tenant == DEFAULT_TENANT
    # Another thing changes: the keys stay.
    with catalog._writer().transaction() as connection:
        from adapters.registry.writer import note_change

        note_change(connection, "bot")
    assert watcher.refresh().keys.keys() == watcher.current.keys.keys() != set()
    assert callers.caller(bearer) == acme
    catalog.revoke_key(key_id)
    watcher.refresh()
    assert callers.caller(bearer) == NOBODY


def test_what_is_no_key_of_ours_is_nobodys(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    key_id, secret = catalog.create_key(["inference"], "app", "acme")
    watcher.refresh()
    callers = Callers(lambda: watcher.current)
    forged = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for header in (
        {},
        {"authorization": "Bearer none"},
        {"authorization": f"Basic {secret}"},
        {"authorization": f"Bearer {forged}"},
        {"authorization": f"Bearer ak-{key_id}-"},
        {"authorization": "Bearer ak-" + "x" * 10_000},
        {"authorization": "Bearer"},
        {"authorization": "Bearer ak-\u00e9"},
        {"x-tenant": "acme"},  # Nobody said that it is to be believed.
    ):
        assert callers.caller(Headers(header)) == NOBODY


def test_a_proxys_header_goes_before_a_key(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    key_id, secret = catalog.create_key(["inference"], "app", "acme")
    watcher.refresh()
    callers = Callers(lambda: watcher.current, weights={"beta": 0.5}, tenant_header="X-Tenant")
    key = {"authorization": f"Bearer {secret}"}
    assert callers.caller(Headers({**key, "x-tenant": " beta "})) == Caller("beta", 0.5, None)
    assert callers.caller(Headers(key)) == Caller("acme", 1.0, key_id)
    assert callers.caller(Headers({})) == NOBODY
    twice = Headers(raw=[(b"x-tenant", b"beta"), (b"x-tenant", b"acme")])
    with pytest.raises(InvalidRequest, match="must name one tenant"):
        callers.caller(twice)


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_a_header_is_a_tenants_name_or_refused(said: str) -> None:
    callers = Callers(lambda: EMPTY, tenant_header="x-tenant")
    headers = Headers(raw=[(b"x-tenant", said.encode("latin-1"))])
    if is_tenant(said.strip()):
        assert callers.caller(headers).tenant == said.strip()
    else:
        with pytest.raises(InvalidRequest):
            callers.caller(headers)


async def test_requests_count_for_their_tenant(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    seen: list[Observation] = []
    gateway.state.observers.append(seen.append)
    for tenant in ("acme", "beta", "gamma", "gamma"):
        async with gateway.post(
            "/v1/chat/completions", json=CHAT, headers={"x-tenant": tenant}
        ) as response:
            assert response.status == 200
    requests, tokens = "adapterctl_tenant_requests_total", "adapterctl_tenant_tokens_total"
    await gateway.settled(requests, 2, tenant="other", outcome="ok")  # Only two have their own.
    assert gateway.metric(requests, tenant="acme", outcome="ok") == 1
    assert gateway.metric(tokens, tenant="beta", kind="prompt") == 7
    assert gateway.metric(tokens, tenant="other", kind="completion") == 8
    assert [one.tenant for one in seen] == ["acme", "beta", "gamma", "gamma"]
    assert "x-tenant" not in {name.lower() for name in engine.headers[0]}
    async with gateway.post(
        "/v1/chat/completions", json=CHAT, headers={"x-tenant": "a b"}
    ) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (
            400,
            "invalid_request",
        )
    assert gateway.metric(requests, tenant="none", outcome="invalid_request") == 1


async def test_a_streams_first_token_counts_for_its_tenant(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    engine.handler = stream
    async with gateway.post(
        "/v1/chat/completions", json={**CHAT, "stream": True}, headers={"x-tenant": "acme"}
    ) as response:
        assert response.status == 200
        await response.read()
    name = "adapterctl_tenant_time_to_first_token_seconds_count"
    assert gateway.metric(name, tenant="acme") == 1
    await gateway.settled("adapterctl_tenant_tokens_total", 2, tenant="acme", kind="completion")
