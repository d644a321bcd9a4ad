"""The admin API of lanes over HTTP: shapes, statuses, and when a change can be seen."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from adapters.catalog import Catalog
from adapters.frozen import Lane
from adapters.registry.snapshot import SnapshotWatcher
from server.gateway.admin import admin_router
from server.gateway.errors import install_error_handlers
from server.gateway.lane_models import Prefetched
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.server.cli.command_line import serving
from tests.server.cli.scripted_lanes import ADVICE, RESIDENT, TOP, ScriptedLanes
from tests.server.gateway.test_admin_routes import ask


class Watching(ScriptedLanes):
    """Answers by what the server's snapshot says, as the real ones do."""

    def __init__(self, catalog: Catalog, watcher: SnapshotWatcher) -> None:
        super().__init__(catalog)
        self.watcher = watcher

    async def prefetch(self, reference: str) -> Prefetched:
        version = self.watcher.current.resolve(reference).version
        assert version is not None
        return Prefetched(adapter=version.adapter, number=version.number, lane=Lane.HOT)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """`bot` and `other`, with two versions each."""
    root = tmp_path_factory.mktemp("admin-lanes")
    with Catalog.init(root / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(root / "small"))
        for seed, name in enumerate(("bot", "bot", "other", "other")):
            source = write_source(root / f"source-{seed}", seed)
            catalog.register(str(source), name=name, base="small")
        yield catalog


@pytest.fixture(scope="module")
def watcher(catalog: Catalog) -> Iterator[SnapshotWatcher]:
    """Never looks by itself: what it has seen, a request has made it see."""
    watcher = SnapshotWatcher(catalog.layout.root, interval=3600)
    watcher.start()
    yield watcher
    watcher.stop()


@pytest.fixture(scope="module")
def lanes(catalog: Catalog, watcher: SnapshotWatcher) -> Watching:
    return Watching(catalog, watcher)


@pytest.fixture(scope="module")
def url(catalog: Catalog, watcher: SnapshotWatcher, lanes: Watching) -> Iterator[str]:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(
        admin_router(
            catalog,
            refresh=watcher.refresh,
            engines=list,
            lanes=lanes,
            require_admin_key=False,
        )
    )
    with serving(app) as url:
        yield url


def test_a_change_is_in_the_snapshot_when_it_is_answered(
    url: str, watcher: SnapshotWatcher
) -> None:
    def bot() -> tuple[list[Lane | None], list[bool], list[str]]:
        adapter = watcher.current.adapters["bot"]
        deployed = adapter.deployments.values()
        return [it.lane for it in deployed], [it.pinned for it in deployed], list(adapter.routes)

    assert bot() == ([], [], [])
    status, answer, _ = ask(url, "PUT", "/admin/v1/deployments/bot:v1", '{"lane": "hot"}')
    assert (status, answer["job"], answer["shown"]["state"]) == (200, None, "served")
    assert ask(url, "PUT", "/admin/v1/pins/bot:v1")[1]["deployment"]["pinned"] is True
    assert bot() == ([Lane.HOT], [True], [])
    route = '{"splits": ["v1=5%"], "header": "X-Canary=1", "limits": null}'
    status, made, _ = ask(url, "PUT", "/admin/v1/routes/bot", route)
    assert (status, made["tag"], made["limits"]) == (200, "latest", None)
    assert bot() == ([Lane.HOT], [True], ["latest"])
    shown = ask(url, "GET", "/admin/v1/routes/bot%3Alatest")[1]
    assert (shown["stable"], shown["route"]) == (2, made)
    assert ask(url, "DELETE", "/admin/v1/routes/bot")[1]["route"] is None
    assert ask(url, "DELETE", "/admin/v1/pins/bot:v1")[1]["deployment"]["pinned"] is False
    assert ask(url, "DELETE", "/admin/v1/deployments/bot:v1")[1]["state"] == "out_of_service"
    assert bot() == ([None], [False], [])
    history = ask(url, "GET", "/admin/v1/adapters/bot/lanes/history")[1]
    assert {line["actor"] for line in history} == {"admin"}
    assert [line["kind"] for line in history][-1] == "undeploy"


def test_a_pin_that_no_slot_is_left_for_is_refused(
    url: str, lanes: Watching, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "full", True)
    status, answer, _ = ask(url, "PUT", "/admin/v1/pins/other:v2")
    assert (status, answer["error"]["code"]) == (409, "conflict")
    assert "9 adapters would be pinned" in answer["error"]["message"]
    assert catalog.adapter("other").deployments == {}
    assert ask(url, "DELETE", "/admin/v1/pins/other:v2")[0] == 200


def test_what_is_served_without_a_deployment_says_that_it_needs_none(url: str) -> None:
    status, answer, _ = ask(url, "GET", "/admin/v1/deployments/other:v1")
    assert status == 404
    assert "needs none: it is served hot" in answer["error"]["message"]


def test_prefetch_knows_what_another_process_has_just_done(url: str, catalog: Catalog) -> None:
    catalog.tag("other:fresh", "v1")
    status, found, _ = ask(url, "POST", "/admin/v1/prefetch/other:fresh")
    assert (status, found["number"]) == (200, 1)


def test_what_is_seen(url: str) -> None:
    for path, document in (
        ("top", TOP.model_dump(mode="json")),
        ("advice", [ADVICE.model_dump(mode="json")]),
        ("residency", RESIDENT.model_dump(mode="json")),
        ("routes", []),
    ):
        assert ask(url, "GET", f"/admin/v1/{path}")[:2] == (200, document)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "deployments/other:v1", None, 404, "not_found"),
        ("GET", "deployments/nobody", None, 404, "model_not_found"),
        ("PUT", "deployments/other:v1", '{"lane": "cold"}', 400, "invalid_request"),
        ("PUT", "deployments/other:v1", None, 400, "invalid_request"),
        ("PUT", "deployments/other:v1", '{"lane": "hot", "model": "other:v2"}', 400, "usage"),
        ("DELETE", "deployments/other:v9", None, 404, "version_not_found"),
        ("PUT", "routes/other", "{}", 400, "usage"),
        ("PUT", "routes/other", '{"splits": ["v1=6e1"]}', 400, "usage"),
        ("PUT", "routes/other", '{"splits": ["v1=5%"], "sticky": "pod"}', 400, "invalid_request"),
        ("PUT", "routes/other:v1", '{"splits": ["v2=5%"]}', 400, "usage"),
        ("GET", "routes/other@sha256:00000000", None, 400, "usage"),
        ("DELETE", "routes/other:none", None, 404, "tag_not_found"),
        ("PUT", "pins/nobody", None, 404, "model_not_found"),
        ("POST", "prefetch/nobody", None, 404, "model_not_found"),
        ("GET", "adapters/nobody/lanes/history", None, 404, "model_not_found"),
    ],
)
def test_refusals(
    url: str, method: str, path: str, body: str | None, status: int, code: str
) -> None:
    found, document, _ = ask(url, method, f"/admin/v1/{path}", body)
    assert (found, document["error"]["code"]) == (status, code), json.dumps(document)
