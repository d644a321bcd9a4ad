"""A store and a scripted engine for a real server."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.served import Served, engine_at, served
from tests.faults.tiny_store import make_store
from tests.server.gateway.scripted import ScriptedEngine


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all; who changes it puts it back, or makes one of its own."""
    return make_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedEngine]:
    # A unix socket's path has 108 bytes at most; the tests' own directories are longer.
    with tempfile.TemporaryDirectory(prefix="engine-") as directory:
        async with engine_at(Path(directory) / "engine.sock") as scripted:
            yield scripted


@pytest.fixture
def arguments(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Further arguments of `serve`: the test's mark `serve`."""
    mark = request.node.get_closest_marker("serve")
    return () if mark is None else mark.args


@pytest.fixture
async def server(
    store: Path, engine: ScriptedEngine, arguments: tuple[str, ...], tmp_path: Path
) -> AsyncIterator[Served]:
    async with served(store, engine, *arguments, log=tmp_path / "serve.log") as running:
        yield running


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Path]:
    """A store for one test that damages it."""
    yield make_store(tmp_path)
