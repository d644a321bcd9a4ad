"""Every request to the admin API that may change something is in the audit log."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from adapters.audit import AuditFilter, AuditRecord
from adapters.catalog import Catalog
from server.gateway import admin_audit
from server.gateway.admin import admin_router
from server.gateway.errors import install_error_handlers
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.server.cli.command_line import serving
from tests.server.cli.scripted_lanes import ScriptedLanes

# What is sent to each operation that may change something: its path's values, and a body. Much of
# it is refused, which is told as well; where a child process would do it, before there is one.
EXAMPLES: dict[tuple[str, str], tuple[dict[str, str], object]] = {
    ("POST", "/bases"): ({}, {"name": "other"}),
    ("DELETE", "/bases/{name}"): ({"name": "small"}, None),
    ("POST", "/adapters"): ({}, {"name": "bot", "base": "small"}),
    ("POST", "/compositions"): ({}, {"parts": []}),
    ("POST", "/inspect"): ({}, {"format": "peft"}),
    ("POST", "/uploads"): ({}, b"bytes"),
    ("DELETE", "/uploads/{upload}"): ({"upload": "nobody"}, None),
    ("DELETE", "/references/{reference}"): ({"reference": "bot:v2"}, None),
    ("PUT", "/adapters/{name}/tags/{tag}"): ({"name": "bot", "tag": "prod"}, {"version": "v1"}),
    ("DELETE", "/adapters/{name}/tags/{tag}"): ({"name": "bot", "tag": "latest"}, None),
    ("POST", "/adapters/{name}/tags/{tag}/rollback"): ({"name": "bot", "tag": "prod"}, None),
    ("POST", "/gc"): ({}, {"dry_run": True}),
    ("POST", "/verify"): ({}, None),
    ("POST", "/keys"): ({}, {"label": "app"}),
    ("DELETE", "/keys/{key_id}"): ({"key_id": "0123456789ab"}, None),
    ("POST", "/jobs"): ({}, {"kind": "merge", "reference": "nobody"}),
    ("POST", "/jobs/{job_id}/cancel"): ({"job_id": "nobody"}, None),
    ("POST", "/jobs/{job_id}/resume"): ({"job_id": "nobody"}, None),
    ("DELETE", "/jobs/{job_id}"): ({"job_id": "nobody"}, None),
    ("PUT", "/deployments/{reference}"): ({"reference": "bot:v1"}, {"lane": "hot"}),
    ("DELETE", "/deployments/{reference}"): ({"reference": "bot:v1"}, None),
    ("PUT", "/quarantines/{reference}"): ({"reference": "bot:v1"}, {"reason": "NaN"}),
    ("DELETE", "/quarantines/{reference}"): ({"reference": "bot:v2"}, None),
    ("PUT", "/pins/{reference}"): ({"reference": "bot:v1"}, None),
    ("DELETE", "/pins/{reference}"): ({"reference": "bot:v1"}, None),
    ("POST", "/prefetch/{reference}"): ({"reference": "nobody"}, None),
    ("PUT", "/routes/{reference}"): ({"reference": "bot"}, {"splits": ["v1=5%"]}),
    ("DELETE", "/routes/{reference}"): ({"reference": "bot"}, None),
}
PREFIX = "/admin/v1"


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        for seed in (1, 2):
            source = write_source(tmp_path / f"source-{seed}", seed)
            catalog.register(str(source), name="bot", base="small")
        yield catalog


def made(catalog: Catalog, *, require_key: bool = False) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    lanes = ScriptedLanes(catalog)
    app.include_router(
        admin_router(
            catalog,
            refresh=lambda: None,
            engines=list,
            lanes=lanes,
            require_admin_key=require_key,
        )
    )
    return app


@pytest.fixture
def app(catalog: Catalog) -> FastAPI:
    return made(catalog)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def closed(catalog: Catalog) -> Iterator[str]:
    """A server that asks everybody for a key."""
    with serving(made(catalog, require_key=True)) as url:
        yield url


def ask(
    url: str, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, Any, str]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    if body is not None and not isinstance(body, bytes):
        sent["Content-Type"] = "application/json"
    connection.request(method, PREFIX + path, data, sent)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text.splitlines()[-1]) if text else None, text


def told(catalog: Catalog, request: str) -> list[AuditRecord]:
    return catalog.audit(AuditFilter(request=request))


def operations(app: FastAPI) -> set[tuple[str, str]]:
    return {
        (method.upper(), path.removeprefix(PREFIX))
        for path, methods in app.openapi()["paths"].items()
        if path.startswith(PREFIX)
        for method in methods
        if method != "get"
    }


def test_every_operation_that_may_change_something_is_told(
    app: FastAPI, url: str, catalog: Catalog
) -> None:
    """A new one needs an example here: it must leave a row with what became of it."""
    assert operations(app) == EXAMPLES.keys()
    for number, ((method, path), (values, body)) in enumerate(EXAMPLES.items()):
        request = f"request-{number}"
        filled = path.format(**values) + ("?name=x.bin" if path == "/uploads" else "")
        status, document, _ = ask(url, method, filled, body, x_request_id=request)
        rows = told(catalog, request)
        assert rows, f"{method} {path} left no row"
        outcome = "ok" if status == 200 else document["error"]["code"]
        assert rows[-1].outcome == outcome, (method, path)
        assert all(row.actor == "admin" for row in rows)
        assert all(row.origin == "127.0.0.1" for row in rows)
        assert all((row.message is None) == (row.outcome == "ok") for row in rows)


def test_what_is_done_is_told_with_before_and_after(url: str, catalog: Catalog) -> None:
    key_id, secret = catalog.create_key(["admin"], "ops")
    bearer = f"Bearer {secret}"
    path = "/adapters/bot/tags/prod"
    assert ask(url, "PUT", path, {"version": "v1"}, authorization=bearer, x_request_id="r1")[0] == (
        200
    )
    [row] = told(catalog, "r1")
    assert (row.actor, row.key, row.origin) == ("key:ops", key_id, "127.0.0.1")
    assert (row.action, row.subject, row.outcome) == ("tag", "bot:prod", "ok")
    assert (row.before, row.after) == (None, {"bot:prod": "v1"})
    _, new, _ = ask(url, "POST", "/keys", {"tenant": "acme"}, x_request_id="r2")
    [row] = told(catalog, "r2")
    assert row.subject == f"key {new['id']}"
    assert new["secret"] not in row.model_dump_json()
    # What is not valid never came to the catalog.
    assert ask(url, "POST", "/gc", {"dry": 1}, x_request_id="r3")[0] == 400
    [row] = told(catalog, "r3")
    assert (row.action, row.subject, row.outcome) == ("gc", "/gc", "invalid_request")
    # Reading is no action.
    assert ask(url, "GET", "/adapters", x_request_id="r4")[0] == 200
    assert ask(url, "GET", "/adapters/nobody", x_request_id="r5")[0] == 404
    assert told(catalog, "r4") == told(catalog, "r5") == []


def test_work_told_as_events_is_noted_when_it_has_ended(
    url: str, catalog: Catalog, tmp_path: Path
) -> None:
    """By a child process here: what one succeeds in is in tests/server/cli/test_contract.py."""
    body = {"name": "nobodys", "path": str(tmp_path / "nowhere")}
    events = "application/x-ndjson"
    _, last, text = ask(url, "POST", "/bases", body, x_request_id="r1", accept=events)
    [row] = told(catalog, "r1")
    assert "error" in last, text
    assert (row.action, row.subject) == ("base.add", "nobodys")
    assert (row.actor, row.origin) == ("admin", "127.0.0.1")
    assert row.outcome == last["error"]["code"]


def test_who_is_not_let_in_is_told(closed: str, catalog: Catalog) -> None:
    key_id, secret = catalog.create_key(["infer"], "app")
    bearer = f"Bearer {secret}"
    # Also who only wanted to read.
    assert ask(closed, "GET", "/keys", authorization=bearer, x_request_id="r1")[0] == 403
    [row] = told(catalog, "r1")
    assert (row.actor, row.key, row.outcome) == (f"key {key_id}", key_id, "forbidden")
    assert (row.action, row.subject) == ("keys", "/keys")
    catalog.revoke_key(key_id)
    assert ask(closed, "POST", "/gc", {}, authorization=bearer, x_request_id="r2")[0] == 401
    [row] = told(catalog, "r2")
    assert (row.actor, row.key, row.outcome) == ("unknown", key_id, "invalid_api_key")
    upload = "/uploads?name=x.bin"
    assert ask(closed, "POST", upload, b"bytes", x_request_id="r3")[0] == 401
    [row] = told(catalog, "r3")
    assert (row.actor, row.key, row.action) == ("unknown", None, "upload")
    assert secret.split("-", 2)[2] not in str(catalog.audit())


def test_nobody_without_a_key_fills_the_disk(
    closed: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = len(catalog.audit())
    wanted = admin_audit.REFUSALS_A_MINUTE + 15
    for _ in range(wanted):
        assert ask(closed, "POST", "/gc", {})[0] == 401
    noted = len(catalog.audit(AuditFilter(limit=1000))) - known
    # Twice as many where a minute of the clock has ended meanwhile.
    assert noted in {admin_audit.REFUSALS_A_MINUTE, wanted}


def test_an_id_that_is_none_is_not_kept(url: str, catalog: Catalog) -> None:
    ask(url, "POST", "/gc", {}, x_request_id="' OR 1=1")
    row = catalog.audit()[-1]
    assert row.action == "gc"
    assert row.request is not None
    assert row.request.isalnum()


def test_the_log_is_read_over_http(url: str, catalog: Catalog) -> None:
    catalog.tag("bot:prod", "v1", actor="ann")
    status, rows, _ = ask(url, "GET", "/audit?actor=ann&limit=5")
    assert (status, [row["action"] for row in rows]) == (200, ["tag"])
    assert rows[0]["after"] == {"bot:prod": "v1"}
    assert ask(url, "GET", "/audit?since=2026-01-01T00:00:00Z&subject=bot")[0] == 200
    for wrong in ("limit=0", "since=yesterday", "nobody=1"):
        status, document, _ = ask(url, "GET", f"/audit?{wrong}")
        assert (status, document["error"]["code"]) == (400, "invalid_request")
