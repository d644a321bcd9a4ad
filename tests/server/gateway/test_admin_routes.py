"""The admin API's HTTP side: shapes, statuses, documentation, faults."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from starlette.routing import Route

from adapters.catalog import Catalog
from adapters.errors import EngineUnavailable
from adapters.registry.snapshot import SnapshotWatcher
from server.gateway.admin import admin_router
from server.gateway.errors import install_error_handlers
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.server.cli.command_line import serving
from tests.server.cli.scripted_lanes import ScriptedLanes


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        for seed in (1, 2):
            source = write_source(tmp_path / f"source-{seed}", seed)
            catalog.register(str(source), name="my.bot_1-x", base="small")
        yield catalog


@pytest.fixture
def watcher(catalog: Catalog) -> Iterator[SnapshotWatcher]:
    """Never looks by itself: what it has seen, a request has made it see."""
    watcher = SnapshotWatcher(catalog.layout.root, interval=3600)
    watcher.start()
    yield watcher
    watcher.stop()


@pytest.fixture
def app(catalog: Catalog, watcher: SnapshotWatcher) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(
        admin_router(
            catalog,
            refresh=watcher.refresh,
            engines=list,
            lanes=ScriptedLanes(catalog),
            require_admin_key=False,
        )
    )
    return app


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


def ask(
    url: str, method: str, path: str, body: str | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    return answer.status, document, answer.headers


def test_references_stand_in_a_path_as_they_are_or_encoded(url: str, catalog: Catalog) -> None:
    digest = catalog.show("my.bot_1-x:v1").digest
    for path in (
        "my.bot_1-x:v1",
        "my.bot_1-x%3Av1",
        f"my.bot_1-x@{digest}",
        f"my.bot_1-x%40sha256%3A{digest[7:27]}",
    ):
        status, document, _ = ask(url, "GET", f"/admin/v1/references/{path}")
        assert (status, document["version"]["number"]) == (200, 1)
        assert document["manifest"]["method"] == "lora"


def test_filters_are_query_parameters(url: str) -> None:
    def names(query: str) -> list[str]:
        status, document, _ = ask(url, "GET", f"/admin/v1/adapters?{query}")
        assert status == 200
        return [adapter["name"] for adapter in document]

    assert names("base=small&method=LORA&name=my*&lane=hot") == ["my.bot_1-x"]
    assert names("base=small&method=dora") == []
    for wrong in ("lane=cold", "nmae=my*"):
        status, document, _ = ask(url, "GET", f"/admin/v1/adapters?{wrong}")
        assert (status, document["error"]["type"]) == (400, "invalid_request_error")


def test_a_change_is_in_the_snapshot_when_it_is_answered(
    url: str, watcher: SnapshotWatcher
) -> None:
    path = "/admin/v1/adapters/my.bot_1-x/tags/prod"
    status, change, _ = ask(url, "PUT", path, '{"version": "v1"}')
    assert (status, change["new"]) == (200, 1)
    assert watcher.current.adapters["my.bot_1-x"].tags["prod"] == 1
    assert ask(url, "DELETE", path)[0] == 200
    assert "prod" not in watcher.current.adapters["my.bot_1-x"].tags


def test_who_did_it_is_in_the_history(url: str) -> None:
    ask(url, "PUT", "/admin/v1/adapters/my.bot_1-x/tags/prod", '{"version": "v1"}')
    _, history, _ = ask(url, "GET", "/admin/v1/adapters/my.bot_1-x/history")
    assert history[-1]["actor"] == "admin"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/admin/v1/nothing", None, 404, "route_not_served", None),
        ("PATCH", "/admin/v1/adapters", None, 405, "invalid_request", None),
        ("POST", "/admin/v1/adapters", "{}", 400, "invalid_request", "source"),
        ("POST", "/admin/v1/adapters", "{", 400, "invalid_request", None),
        ("POST", "/admin/v1/adapters", "[]", 400, "invalid_request", None),
        ("POST", "/admin/v1/gc", '{"dry": true}', 400, "invalid_request", "dry"),
        ("POST", "/admin/v1/gc", None, 400, "invalid_request", None),
        ("GET", "/admin/v1/adapters/nobody", None, 404, "model_not_found", None),
        ("GET", "/admin/v1/adapters/..%2Fx", None, 404, "route_not_served", None),
        ("GET", "/admin/v1/references/a%20b", None, 400, "invalid_reference", "model"),
        ("DELETE", "/admin/v1/references/my.bot_1-x:v2", None, 409, "in_use", None),
        (
            "DELETE",
            "/admin/v1/references/my.bot_1-x?force=perhaps",
            None,
            400,
            "invalid_request",
            "force",
        ),
    ],
)
def test_every_failure_has_openais_shape(
    url: str,
    method: str,
    path: str,
    body: str | None,
    status: int,
    code: str,
    param: str | None,
) -> None:
    found, document, headers = ask(url, method, path, body)
    assert headers["Content-Type"] == "application/json"
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert error["message"]


def test_faults_and_retries(app: FastAPI, url: str, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: object) -> None:
        raise ZeroDivisionError("secret detail")

    async def later(_: object) -> None:
        raise EngineUnavailable("not yet", retry_after=7)

    app.router.routes.extend([Route("/broken", broken), Route("/later", later)])
    status, document, _ = ask(url, "GET", "/broken")
    assert (status, document["error"]["code"]) == (500, "internal_error")
    assert "secret" not in document["error"]["message"]
    assert "GET /broken failed" in caplog.text
    assert "secret detail" in caplog.text
    status, document, headers = ask(url, "GET", "/later")
    assert (status, headers["Retry-After"]) == (503, "7")


def test_documentation_describes_every_route(app: FastAPI) -> None:
    document = app.openapi()
    operations = [
        operation
        for path, methods in document["paths"].items()
        if path.startswith("/admin/v1/")
        for operation in methods.values()
    ]
    assert len(operations) == 50
    for operation in operations:
        assert operation["summary"]
        assert operation["security"] == [{"HTTPBearer": []}]
