"""One tenant and another's adapters: it cannot see, use or change them, nor tell that they exist.

The claim is that of noninterference: whatever acme asks is answered, byte for byte, as before beta
had anything. How far beta's traffic may slow acme's is tested in test_fair_shares.py; that
the real engine's cache does not tell is in tests/engine/test_cache_salt.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.catalog import Catalog
from adapters.compositions import Part, Recipe
from server.gateway.admin_scopes import REGISTER_ROUTES, WITHHELD
from server.gateway.routes import ENGINE_ROUTES
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.server.gateway.isolation import ACME, BASE, House, house
from tests.server.gateway.scripted import ScriptedEngine, answer

PROMPT = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "max_tokens": 5}
CHAT = "/v1/chat/completions"
UPLOADS = "/admin/v1/uploads"


EITHER = pytest.mark.parametrize("shared", ["by its key", "by its tenant"], indirect=True)


@pytest.fixture
async def shared(
    request: pytest.FixtureRequest, engine: ScriptedEngine, tmp_path: Path
) -> AsyncIterator[House]:
    """acme is held to its names by each of its keys, or by what its tenant may use at most."""
    by_key = getattr(request, "param", "by its key") == "by its key"
    settings: dict[str, Any] = {} if by_key else {"tenant_adapters": {"acme": ACME}}
    limits: dict[str, Any] = {"adapters": ACME} if by_key else {}
    engine.handler = answer
    async with house(tmp_path, engine, **settings) as found:
        for seed in (1, 2):
            found.register("acme-bot", seed, tag="prod" if seed == 1 else None)
        found.register("shared-tone", 3)
        found.compose("acme-bot:v1", "shared-tone:v1")
        found.key("acme", ["infer"], **limits)
        found.key("acme ci", ["register"], **limits)
        found.key("beta ci", ["register"], adapters=["beta-*"])
        found.key("ops", ["admin"])
        found.key("free", ["infer"])
        yield found


def betas_part(catalog: Catalog, root: Path) -> list[str]:
    """Beta registers, tags, composes and routes; the references that mean something now."""
    digests = [
        catalog.register(
            str(write_source(root / f"beta-{seed}", seed)), name=name, base=BASE, tag=tag
        ).digest
        for seed, name, tag in (
            (11, "beta-bot", "prod"),
            (12, "beta-bot", None),
            (13, "beta-x", None),
        )
    ]
    parts = [Part(reference="beta-bot:v1", weight=0.5), Part(reference="beta-x:v1", weight=0.5)]
    mix = catalog.compose(parts, Recipe(), name=None).name
    catalog.route("beta-bot:prod", splits=["v2=50%"])
    return [
        "beta-bot",
        "beta-bot:prod",
        f"beta-bot@{digests[0]}",
        f"beta-bot@{digests[1][:20]}",
        "beta-x:v1",
        mix,
        "beta-bot:v1*0.5+beta-x:v1*0.5",
    ]


@pytest.fixture
def betas(tmp_path: Path) -> list[str]:
    """What beta's references will be, digests and all: from a store of the same content."""
    with Catalog.init(tmp_path / "elsewhere" / "store", intake=SmallIntake()) as catalog:
        catalog.base_add(BASE, write_base(tmp_path / "elsewhere" / BASE))
        return betas_part(catalog, tmp_path)


def asked_for(references: list[str]) -> list[str]:
    """What acme may try: those, what is near them, and its own names with beta's ends."""
    digest = references[2].partition("@")[2]
    return [
        *references,
        "beta-bo",
        "beta-bott",
        "beta-bot:nothing",
        "beta-bot:v9",
        "acme-bot*0.5+beta-bot*0.5",
        f"acme-bot@{digest}",
        digest.replace(":", "-"),
        "acme-bott",
        "a",
    ]


async def operations(found: House) -> list[tuple[str, str]]:
    """Every operation of the admin API, as its own document lists them."""
    _, _, body = await found.ask(None, "GET", "/openapi.json")
    admin = {p: kinds for p, kinds in json.loads(body)["paths"].items() if "/admin/v1/" in p}
    return [(method.upper(), path) for path, kinds in admin.items() for method in kinds]


def filled(path: str, reference: str) -> str:
    """A path with beta's names where it takes some."""
    name, _, tag = reference.partition(":")
    values = {"name": name.partition("@")[0], "tag": tag or "prod", "reference": reference}
    return re.sub(r"{(\w+)}", lambda found: values.get(found.group(1), "1"), path)


async def everything_acme_can_ask(found: House, references: list[str]) -> dict[str, Any]:
    """What was asked -> status, headers and body."""
    answers: dict[str, Any] = {}

    async def note(who: str, method: str, path: str, body: Any = None) -> None:
        about = f"{who}: {method} {path} {str(body)[:200]}"
        answers[about] = await found.ask(who, method, path, body)

    await note("acme", "GET", "/v1/models")
    for reference in asked_for(references):
        await note("acme", "GET", f"/v1/models/{reference}")
        await note("acme", "POST", CHAT, {"model": reference, **PROMPT})
    await note("acme", "POST", CHAT, {"model": references[0], "stream": True, **PROMPT})
    for route in ENGINE_ROUTES:
        await note("acme", "POST", route.path, {"model": references[0], **PROMPT})
    await note("acme", "GET", "/metrics")
    for method, path in await operations(found):
        await note("acme", method, filled(path, references[0]), {})
        if not path.endswith(("v1/adapters", "v1/inspect", "v1/uploads")) or method != "POST":
            for reference in references[:4:2]:
                await note("acme ci", method, filled(path, reference), {"version": "v1"})
    await note("acme ci", "GET", "/admin/v1/adapters?name=beta*")
    await note("acme ci", "GET", "/admin/v1/adapters?tag=prod")
    for name in ("beta-bot", "beta-new"):
        for source in ("upload:1-0123456789abcdef", str(found.root / "beta-11")):
            order = {"name": name, "base": BASE, "source": source}
            await note("acme ci", "POST", "/admin/v1/adapters", order)
            await note("acme ci", "POST", "/admin/v1/inspect", {"source": source})
    return answers


@EITHER
async def test_what_acme_is_told_is_the_same_with_and_without_beta(
    shared: House, betas: list[str]
) -> None:
    before = await everything_acme_can_ask(shared, betas)
    usable = [await shared.ask("free", "GET", f"/v1/models/{one}") for one in betas[:6]]
    assert {status for status, _, _ in usable} == {404}
    assert betas_part(shared.catalog, shared.root) == betas
    shared.watcher.refresh()
    after = await everything_acme_can_ask(shared, betas)
    assert [about for about in before if before[about] != after[about]] == []
    # What others may use is there now, and nothing of it has reached the engine for acme.
    usable = [await shared.ask("free", "GET", f"/v1/models/{one}") for one in betas[:6]]
    assert {status for status, _, _ in usable} == {200}
    assert shared.engine.received == []
    assert {status for status, _, _ in after.values()} == {200, 400, 403, 404}
    own = [about for about, (status, _, body) in after.items() if status == 200 or b"bot" in body]
    assert own  # Not everything was refused for one common reason.


@EITHER
async def test_acme_can_use_what_is_its_own(shared: House, betas: list[str]) -> None:
    betas_part(shared.catalog, shared.root)
    shared.watcher.refresh()
    _, _, body = await shared.ask("acme", "GET", "/v1/models")
    listed = {entry["id"].partition(":")[0] for entry in json.loads(body)["data"]}
    assert listed == {"acme-bot", "shared-tone", BASE}
    for model in ("acme-bot:v1", "shared-tone", BASE, "acme-bot:v1*0.5+shared-tone:v1*0.5"):
        status, _, _ = await shared.ask("acme", "POST", CHAT, {"model": model, **PROMPT})
        assert (model, status) == (model, 200)
    # Nor are the sums that requests made anybody's names.
    mix = next(name for name in shared.watcher.current.adapters if name.startswith("mix-"))
    assert (await shared.ask("acme", "POST", CHAT, {"model": mix, **PROMPT}))[0] == 404
    _, _, body = await shared.ask("acme", "POST", CHAT, {"model": "acme-bor", **PROMPT})
    assert "did you mean 'acme-bot'" in json.loads(body)["error"]["message"]


@EITHER
async def test_a_key_that_registers_sees_and_moves_its_own(shared: House) -> None:
    betas_part(shared.catalog, shared.root)
    admin = "/admin/v1"
    _, _, body = await shared.ask("acme ci", "GET", f"{admin}/adapters")
    assert [adapter["name"] for adapter in json.loads(body)] == ["acme-bot", "shared-tone"]
    _, _, body = await shared.ask("acme ci", "GET", f"{admin}/bases")
    assert [(base["name"], base["path"]) for base in json.loads(body)] == [(BASE, "")]
    tag = f"{admin}/adapters/acme-bot/tags/prod"
    assert (await shared.ask("acme ci", "PUT", tag, {"version": "v2"}))[0] == 200
    assert (await shared.ask("acme ci", "POST", f"{tag}/rollback"))[0] == 200
    assert shared.watcher.current.adapters["acme-bot"].tags["prod"] == 1
    _, _, body = await shared.ask("acme ci", "GET", f"{admin}/adapters/acme-bot/history")
    assert {change["actor"] for change in json.loads(body)[-2:]} == {"key:acme ci"}
    assert (await shared.ask("acme ci", "GET", f"{admin}/references/acme-bot:v1"))[0] == 200
    assert (await shared.ask("acme ci", "DELETE", tag))[0] == 200
    refused = await shared.ask("acme ci", "DELETE", f"{admin}/references/acme-bot:v1")
    assert refused[0] == 403


async def test_only_the_routes_of_the_table_are_open_to_it(shared: House) -> None:
    found = [(method, path) for method, path in await operations(shared)]
    assert {(m, p.removeprefix("/admin/v1")) for m, p in found} >= REGISTER_ROUTES
    for method, path in found:
        if (method, path.removeprefix("/admin/v1")) not in REGISTER_ROUTES:
            status, _, body = await shared.ask("acme ci", method, filled(path, "acme-bot:v1"), {})
            assert (path, status) == (path, 403)
            assert b"has no scope 'admin'" in body


async def test_anothers_upload_is_not_there(shared: House) -> None:
    status, _, body = await shared.ask("beta ci", "POST", f"{UPLOADS}?name=a.safetensors", b"beta")
    assert status == 200
    upload = json.loads(body)["upload"]
    theirs = await shared.ask("acme ci", "DELETE", f"{UPLOADS}/{upload}")
    nobodys = await shared.ask("acme ci", "DELETE", f"{UPLOADS}/1-0123456789abcdef")
    assert theirs[0] == nobodys[0] == 404
    assert theirs[2].replace(upload.encode(), b"1-0123456789abcdef") == nobodys[2]
    order = {"name": "acme-new", "base": BASE, "source": f"upload:{upload}"}
    assert (await shared.ask("acme ci", "POST", "/admin/v1/adapters", order))[0] == 404
    inspect = {"source": f"upload:{upload}#sha256={'0' * 64}"}
    assert (await shared.ask("acme ci", "POST", "/admin/v1/inspect", inspect))[0] == 404
    assert (await shared.ask("beta ci", "DELETE", f"{UPLOADS}/{upload}"))[0] == 200


async def test_the_servers_disk_and_network_are_not_for_those_who_register(shared: House) -> None:
    for source in ("/etc", "hf:owner/name", "https://example.com/a.zip", "s3://bucket/key"):
        order = {"name": "acme-new", "base": BASE, "source": source}
        for path, body in (("adapters", order), ("inspect", {"source": source})):
            status, _, text = await shared.ask("acme ci", "POST", f"/admin/v1/{path}", body)
            assert (status, b"upload:ID" in text) == (403, True)


async def test_what_an_adapter_was_made_of_is_shown_as_far_as_it_is_acmes(shared: House) -> None:
    betas_part(shared.catalog, shared.root)
    shared.compose("acme-bot:v1", "beta-bot:v1", name="acme-blend")
    for path in ("adapters", "adapters/acme-blend", "references/acme-blend"):
        status, _, body = await shared.ask("acme ci", "GET", f"/admin/v1/{path}")
        assert (status, b"beta" in body) == (200, False)
    manifest = json.loads(body)["manifest"]
    assert [origin["reference"] for origin in manifest["composed_from"]] == ["acme-bot:v1"]
    assert (manifest["source"], manifest["reasons"]) == (WITHHELD, [WITHHELD])
    _, _, body = await shared.ask("ops", "GET", "/admin/v1/references/acme-blend")
    assert b"beta-bot:v1" in body


async def test_without_a_key_nothing_is_told(shared: House) -> None:
    """On loopback the admin API and the metrics stay open to programs of this machine."""
    shared.key("acme old", ["infer"])
    known = shared.catalog.keys()
    shared.catalog.revoke_key(next(key.id for key in known if key.label == "acme old"))
    shared.watcher.refresh()
    for who in (None, "acme old"):
        for path in ("/v1/models", "/v1/models/acme-bot", "/v1/models/beta-bot"):
            status, headers, body = await shared.ask(who, "GET", path)
            assert (status, headers["www-authenticate"][:6]) == (401, "Bearer")
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == "invalid_api_key"
        for route in ENGINE_ROUTES:
            assert (await shared.ask(who, "POST", route.path, {"model": "acme-bot"}))[0] == 401
    assert (await shared.ask("acme ci", "GET", "/v1/models"))[0] == 403
    assert (await shared.ask("ops", "GET", "/v1/models"))[0] == 200
    assert (await shared.ask("ops", "GET", "/metrics"))[0] == 200
    assert (await shared.ask(None, "GET", "/metrics"))[0] == 200
    assert (await shared.ask(None, "GET", "/metrics", host="gateway.example"))[0] == 403


async def test_the_documentation_says_where_a_key_goes(shared: House) -> None:
    _, _, body = await shared.ask(None, "GET", "/openapi.json")
    document = json.loads(body)
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, kinds in document["paths"].items():
        for operation in kinds.values():
            if path.startswith(("/v1/", "/admin/")):
                assert {"HTTPBearer": []} in operation["security"], path


async def test_the_engine_is_told_whose_prompt_it_is(shared: House) -> None:
    other = {"cache_salt": "tenant-acme"}
    image = {"type": "image_url", "image_url": None, "uuid": "logo"}
    media = {"messages": [{"role": "user", "content": [image]}]}
    for who in ("acme", "free"):
        await shared.ask(who, "POST", CHAT, {"model": BASE, **PROMPT})
        await shared.ask(who, "POST", CHAT, {"model": BASE, **PROMPT, **other})
        await shared.ask(who, "POST", CHAT, {"model": BASE, **media})
    salts = [document["cache_salt"] for document in shared.engine.received]
    assert salts[0] == salts[2] == "tenant-acme"
    assert salts[3] == salts[5] == "tenant-free"
    assert len(set(salts)) == 4  # Nobody's own salt is another's, whatever it says.
    images = [shared.engine.received[k]["messages"][0]["content"][0]["uuid"] for k in (2, 5)]
    assert len({*images, "logo"}) == 3
    status, _, body = await shared.ask(
        "acme", "POST", CHAT, {"model": BASE, **PROMPT, "cache_salt": 5}
    )
    assert (status, json.loads(body)["error"]["param"]) == (400, "cache_salt")
    await shared.ask("acme", "POST", "/tokenize", {"model": BASE, "prompt": "hi"})
    assert "cache_salt" not in shared.engine.received[-1]


async def test_beyond_loopback_metrics_and_admin_need_an_admin_key(
    engine: ScriptedEngine, tmp_path: Path
) -> None:
    for setting in ({"host": "0.0.0.0"}, {"require_key": "always"}):
        root = tmp_path / next(iter(setting))
        root.mkdir()
        async with house(root, engine, **setting) as found:
            # No key is left, and still nothing is open.
            assert (await found.ask(None, "GET", "/v1/models"))[0] == 401
            found.key("acme", ["infer"])
            found.key("ops", ["admin"])
            for path in ("/metrics", "/admin/v1/top", "/admin/v1/keys"):
                statuses = [(await found.ask(who, "GET", path))[0] for who in (None, "acme", "ops")]
                assert statuses == [401, 403, 200]
            assert (await found.ask(None, "GET", "/healthz"))[0] == 200
    root = tmp_path / "open"
    root.mkdir()
    async with house(root, engine, host="0.0.0.0", open_metrics=True) as found:
        assert (await found.ask(None, "GET", "/metrics"))[0] == 200
        assert (await found.ask(None, "GET", "/admin/v1/top"))[0] == 401
