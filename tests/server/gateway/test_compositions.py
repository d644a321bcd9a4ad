"""Sums that requests ask for, made by the real job in a real store; the engine is scripted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from adapters.catalog import Catalog
from adapters.compositions import Part, Recipe, is_mix
from adapters.errors import AdapterNotFound, BaseMismatch, InvalidReference, StoreBusy, UsageError
from adapters.models import AdapterRecord
from adapters.registry.snapshot import SnapshotWatcher
from adapters.serving.stored import ServingDocuments
from server.engine.engines import ExternalEngine
from server.engine.transport import EngineAddress
from server.gateway.app import create_app
from server.gateway.callers import Callers
from server.gateway.compositions import Compositions
from server.gateway.lanes import Lanes
from server.gateway.metrics import GatewayMetrics
from server.gateway.placing import Placing
from server.gateway.quotas.making import made_quotas
from server.gateway.state import GatewayState
from server.settings import ServeSettings
from tests.server.cli.tiny_artifacts import TinyArtifacts, write_tiny_artifacts
from tests.server.gateway.scripted import ScriptedEngine, no_lifespan, serving
from tests.server.gateway.scripted_pool import ScriptedPlaces

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifacts:
    return write_tiny_artifacts(tmp_path_factory.mktemp("tiny"))


@dataclass(frozen=True)
class Place:
    """A store with `a` and `b`, watched."""

    catalog: Catalog
    watcher: SnapshotWatcher

    def compositions(self, *, limit: int = 8, timeout: float = 60) -> Compositions:
        watcher = self.watcher
        return Compositions(
            self.catalog, lambda: watcher.current, watcher.refresh, limit=limit, timeout=timeout
        )

    def mixes(self) -> list[AdapterRecord]:
        return [adapter for adapter in self.catalog.adapters() if is_mix(adapter.name)]


@pytest.fixture
def place(tiny: TinyArtifacts, tmp_path: Path) -> Iterator[Place]:
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.first), name="a", base="tiny")
        catalog.register(str(tiny.second), name="b", base="tiny")
        watcher = SnapshotWatcher(tmp_path / "store")
        watcher.start()
        yield Place(catalog, watcher)
        watcher.stop()


async def test_a_sum_is_made_once_and_found_again(place: Place) -> None:
    compositions = place.compositions()
    both = await asyncio.gather(
        compositions.resolve("a*0.7+b*0.3"), compositions.resolve("b*0.3 + a:latest*0.7")
    )
    (mix,) = place.mixes()
    assert [found.version and found.version.digest for found in both] == [
        mix.versions[1].digest
    ] * 2
    assert both[1].reference == "b*0.3 + a:latest*0.7"
    assert mix.versions[1].rank == 8
    manifest = place.catalog.version_manifest(mix.name)
    assert [origin.reference for origin in manifest.composed_from] in (
        ["a:v1", "b:v1"],
        ["b:v1", "a:v1"],
    )
    began = time.monotonic()
    again = await place.compositions().resolve("a*0.7+b*0.3")
    assert time.monotonic() - began < 0.1, "it was there already"
    assert again.version == both[0].version
    assert [change.actor for change in place.catalog.history(mix.name)] == ["request"]


async def test_it_is_what_compose_makes(place: Place) -> None:
    found = await place.compositions().resolve("a*0.5+b*-2")
    parts = [Part(reference="a", weight=0.5), Part(reference="b", weight=-2)]
    made = place.catalog.compose(parts, Recipe(), name="by-hand")
    assert found.version is not None
    assert found.version.digest == made.digest


async def test_a_moved_tag_means_another_sum(place: Place, tiny: TinyArtifacts) -> None:
    compositions = place.compositions()
    before = await compositions.resolve("a*0.5+b*0.5")
    place.catalog.register(str(tiny.second), name="a", base="tiny")
    place.catalog.register(str(tiny.first), name="b", base="tiny")
    place.watcher.refresh()
    swapped = await compositions.resolve("a*0.5+b*0.5")
    # The very same two versions with the same weights.
    assert swapped.version == before.version
    other = await compositions.resolve("a*0.6+b*0.4")
    assert other.version != before.version


async def test_the_least_recently_used_goes(place: Place) -> None:
    compositions = place.compositions(limit=2)
    first = (await compositions.resolve("a*0.1+b*1")).version
    second = (await compositions.resolve("a*0.2+b*1")).version
    await compositions.resolve("a*0.1+b*1")
    await compositions.resolve("a*0.3+b*1")
    left = {adapter.versions[1].digest for adapter in place.mixes()}
    assert first is not None
    assert second is not None
    assert first.digest in left
    assert second.digest not in left
    assert len(left) == 2


async def test_what_makes_no_sum_is_refused_before_any_work(place: Place) -> None:
    compositions = place.compositions()
    for text, error in {
        "a*0.5+nobody*0.5": AdapterNotFound,
        "a*0.5+tiny*0.5": AdapterNotFound,
        "a*0.5+a:v1*0.5": UsageError,
        "a*0.5+": InvalidReference,
    }.items():
        with pytest.raises(error):
            await compositions.resolve(text)
    assert place.mixes() == []


async def test_parts_of_two_bases_are_refused(place: Place, tmp_path: Path) -> None:
    other = write_tiny_artifacts(tmp_path / "other")
    config = other.base / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    place.catalog.base_add("other", other.base)
    place.catalog.register(str(other.first), name="c", base="other")
    place.watcher.refresh()
    with pytest.raises(BaseMismatch, match="'a:v1' belongs to base 'tiny' and 'c:v1' to 'other'"):
        await place.compositions().resolve("a*0.5+c*0.5")


async def test_a_server_may_make_none(place: Place) -> None:
    with pytest.raises(UsageError, match="max_compositions = 0"):
        await place.compositions(limit=0).resolve("a*0.5+b*0.5")


async def test_a_slow_job_goes_on_without_who_gave_up(place: Place) -> None:
    compositions = place.compositions(timeout=0.05)
    with pytest.raises(StoreBusy, match="not made yet"):
        await compositions.resolve("a*0.5+b*0.5")
    deadline = time.monotonic() + 60
    while not place.mixes():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.fixture
async def url(place: Place, tmp_path: Path) -> AsyncIterator[str]:
    """A gateway on that store; the engine says which model it was asked for."""

    async def answer(_: web.Request, document: dict[str, object]) -> web.Response:
        return web.json_response({"model": document["model"], "usage": {"completion_tokens": 1}})

    scripted = ScriptedEngine(tmp_path / "engine.sock", answer)
    await scripted.start()
    engine = ExternalEngine(
        EngineAddress.parse(f"unix:{scripted.socket}"), "tiny", connect_timeout=1, start_timeout=5
    )
    await engine.start()
    settings = ServeSettings(store=tmp_path, base="tiny")
    pool = ScriptedPlaces(tmp_path).pool(settings)
    metrics = GatewayMetrics(CollectorRegistry(), adapters=10)
    state = GatewayState(
        settings=settings,
        base=place.catalog.base("tiny"),
        engine=engine,
        snapshot=lambda: place.watcher.current,
        compositions=place.compositions(),
        documents=ServingDocuments(place.catalog.layout),
        placing=Placing(place.catalog.base("tiny"), engine, place.catalog.layout, quantized=False),
        lanes=Lanes(engine, pool, wait=1),
        keep_up=lambda: None,
        callers=Callers(lambda: place.watcher.current),
        metrics=metrics,
        quotas=made_quotas(settings, metrics),
    )
    async with serving(create_app(state, APIRouter(), no_lifespan)) as address:
        yield address
    await pool.close()
    await engine.stop()
    await scripted.stop()


async def test_over_http(url: str, place: Place) -> None:
    body = {"model": "a*0.7+b*0.3", "messages": [{"role": "user", "content": "hi"}]}
    async with aiohttp.ClientSession() as client:
        async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            assert (await answer.json())["model"] == "a*0.7+b*0.3"
            (mix,) = place.mixes()
            assert answer.headers["x-adapterctl-digest"] == mix.versions[1].digest
        # Nothing to choose from: it stands in no list.
        async with client.get(f"{url}/v1/models") as answer:
            names = {model["id"] for model in (await answer.json())["data"]}
            assert names == {"tiny", "a", "a:latest", "b", "b:latest"}
        body["model"] = "a*0.7+nobody*0.3"
        async with client.post(f"{url}/v1/chat/completions", json=body) as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "model_not_found"
