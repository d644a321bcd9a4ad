"""Who calls: keys, a trusted proxy's header, and nobody in particular."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from adapters.catalog import Catalog
from adapters.errors import Forbidden, InvalidRequest, Unauthorized
from adapters.registry.key_lookup import hash_secret
from adapters.registry.snapshot import Snapshot, SnapshotWatcher
from adapters.tenants import DEFAULT_TENANT, Quota, is_tenant
from server.gateway.callers import Caller, Callers
from server.gateway.observing import Observation
from server.settings import RequireKey
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, stream

NOBODY = Caller("default", 1.0, None)
EMPTY = Snapshot({}, {}, 0)
SOON = datetime.now(UTC) + timedelta(hours=1)


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


def bearer(secret: str, **more: str) -> Headers:
    return Headers({"authorization": f"Bearer {secret}", **more})


def test_a_key_says_the_tenant_until_it_is_revoked(
    catalog: Catalog, watcher: SnapshotWatcher
) -> None:
    callers = Callers(lambda: watcher.current, weights={"acme": 4})
    assert callers.caller(Headers({})) == NOBODY  # No key anywhere: nobody needs one.
    key_id, secret = catalog.create_key(["infer"], "app", "acme")
    _, other = catalog.create_key(["infer"], "old")
    assert callers.caller(bearer(secret)) == NOBODY  # Not in the snapshot: the disk is not read.
    watcher.refresh()
    acme = Caller("acme", 4.0, key_id, label="app")
    assert callers.caller(bearer(secret)) == acme
    assert callers.caller(Headers({"authorization": f"bearer  {secret} "})) == acme
    assert callers.caller(Headers({"x-api-key": secret})) == acme
    assert callers.caller(bearer(other)).tenant == DEFAULT_TENANT
    # Another thing changes: the keys stay.
    with catalog._writer().transaction() as connection:
        from adapters.registry.writer import note_change

        note_change(connection, "bot")
    assert watcher.refresh().keys.keys() == watcher.current.keys.keys() != set()
    assert callers.caller(bearer(secret)) == acme
    catalog.revoke_key(key_id)
    watcher.refresh()
    with pytest.raises(Unauthorized, match="unknown, revoked or expired"):
        callers.caller(bearer(secret))


def test_when_keys_are_needed(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    def callers(require: RequireKey, *, public: bool = False) -> Callers:
        return Callers(lambda: watcher.current, require=require, public=public)

    table: list[tuple[RequireKey, bool]] = [("auto", False), ("auto", True), ("always", False)]
    assert [callers(r, public=p).key_needed for r, p in table] == [False, True, True]
    key_id, _ = catalog.create_key(["infer"], "app", expires_at=SOON)
    watcher.refresh()
    assert [callers(r, public=p).key_needed for r, p in table] == [True, True, True]
    assert not callers("never", public=True).key_needed
    catalog.revoke_key(key_id)
    watcher.refresh()
    assert [callers(r, public=p).key_needed for r, p in table] == [False, True, True]


def test_what_is_no_key_of_ours_opens_nothing(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    key_id, secret = catalog.create_key(["infer"], "app", "acme")
    _, ended = catalog.create_key(["infer"], "app", "acme", expires_at=SOON)
    watcher.refresh()
    needed = Callers(lambda: watcher.current)
    open_to_all = Callers(lambda: watcher.current, require="never")
    assert needed.caller(bearer(ended)).tenant == "acme"
    _backdate(watcher, ended)
    forged = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    for header in (
        {},
        {"authorization": "Bearer none"},
        {"authorization": f"Basic {secret}"},
        {"authorization": f"Bearer {forged}"},
        {"authorization": f"Bearer {ended}"},
        {"authorization": f"Bearer ak-{key_id}-"},
        {"authorization": "Bearer ak-" + "x" * 10_000},
        {"authorization": "Bearer"},
        {"authorization": "Bearer ak-\u00e9"},
        {"x-tenant": "acme"},  # Nobody said that it is to be believed.
    ):
        assert open_to_all.caller(Headers(header)) == NOBODY
        with pytest.raises(Unauthorized):
            needed.caller(Headers(header))


def _backdate(watcher: SnapshotWatcher, secret: str) -> None:
    """The time of the key is over; nothing else of the registry has changed."""
    old = watcher.current
    keys = dict(old.keys)
    found = hash_secret(secret)
    keys[found] = replace(keys[found], expires_at=datetime.now(UTC) - timedelta(seconds=1))
    watcher._snapshot = Snapshot(old.bases, old.adapters, old.generation, keys)


def test_scopes(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    _, infer = catalog.create_key(["infer"], "app")
    _, admin = catalog.create_key(["admin"], "ops")
    _, register = catalog.create_key(["register"], "ci")
    watcher.refresh()
    callers = Callers(lambda: watcher.current)
    assert callers.caller(bearer(infer)).scopes == ("infer",)
    assert callers.caller(bearer(admin)).scopes == ("admin",)
    with pytest.raises(Forbidden, match="key 'ci' has no scope 'infer'"):
        callers.caller(bearer(register))
    assert callers.caller(bearer(register), "register").label == "ci"
    with pytest.raises(Forbidden, match="no scope 'register'"):
        callers.caller(bearer(infer), "register")


def test_what_a_caller_may_use_is_its_keys_and_its_tenants(
    catalog: Catalog, watcher: SnapshotWatcher
) -> None:
    quota = Quota(requests_per_minute=60)
    _, limited = catalog.create_key(
        ["infer"], "app", "acme", adapters=["acme-*", "beta-*", "tiny"], quota=quota
    )
    _, free = catalog.create_key(["infer"], "app", "acme")
    _, other = catalog.create_key(["infer"], "app", "beta")
    watcher.refresh()
    limits = {"acme": ["acme-*", "tiny"], "default": []}
    callers = Callers(lambda: watcher.current, adapters=limits, tenant_header="x-tenant")

    def names(headers: Headers) -> list[str]:
        caller = callers.caller(headers)
        return [name for name in ("acme-bot", "beta-bot", "tiny", "x") if caller.allows(name)]

    assert names(bearer(limited)) == names(bearer(free)) == ["acme-bot", "tiny"]
    assert callers.caller(bearer(limited)).quota == quota
    assert callers.caller(bearer(free)).quota is None
    assert names(bearer(other)) == ["acme-bot", "beta-bot", "tiny", "x"]
    assert names(Headers({"x-tenant": "acme"})) == ["acme-bot", "tiny"]
    assert names(Headers({"x-tenant": "default"})) == []
    # A proxy that has a key of its own: both hold.
    assert names(bearer(other, **{"x-tenant": "acme"})) == ["acme-bot", "tiny"]
    callers.tell({"acme": 2}, {})
    assert names(bearer(limited)) == ["acme-bot", "beta-bot", "tiny"]
    assert callers.caller(bearer(limited)).weight == 2


def test_a_proxys_header_goes_before_a_key(catalog: Catalog, watcher: SnapshotWatcher) -> None:
    key_id, secret = catalog.create_key(["infer"], "app", "acme")
    watcher.refresh()
    callers = Callers(lambda: watcher.current, weights={"beta": 0.5}, tenant_header="X-Tenant")
    both = bearer(secret, **{"x-tenant": " beta "})
    assert callers.caller(both) == Caller("beta", 0.5, key_id, label="app")
    assert callers.caller(bearer(secret)) == Caller("acme", 1.0, key_id, label="app")
    # The proxy speaks for those without a key, unless everybody must have one.
    assert callers.caller(Headers({"x-tenant": "beta"})) == Caller("beta", 0.5, None)
    token = bearer("a-token-of-the-proxys-own", **{"x-tenant": "beta"})
    assert callers.caller(token).tenant == "beta"
    with pytest.raises(Unauthorized):
        callers.caller(Headers({}))
    with pytest.raises(Unauthorized):
        callers.caller(bearer("ak-000000000000-" + "x" * 43, **{"x-tenant": "beta"}))
    strict = Callers(lambda: watcher.current, tenant_header="X-Tenant", require="always")
    assert strict.caller(both).tenant == "beta"
    with pytest.raises(Unauthorized):
        strict.caller(Headers({"x-tenant": "beta"}))
    twice = Headers(raw=[(b"x-tenant", b"beta"), (b"x-tenant", b"acme")])
    with pytest.raises(InvalidRequest, match="must name one tenant"):
        callers.caller(twice)


def test_callers_that_are_kept_are_no_more_than_there_are_keys(
    catalog: Catalog, watcher: SnapshotWatcher
) -> None:
    callers = Callers(lambda: watcher.current)
    for _ in range(12):
        key_id, secret = catalog.create_key(["infer"], "app")
        watcher.refresh()
        first = callers.caller(bearer(secret))
        assert callers.caller(bearer(secret)) is first
        catalog.revoke_key(key_id)
        watcher.refresh()
    assert len(callers._known) <= 4


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
