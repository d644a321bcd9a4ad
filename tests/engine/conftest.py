"""One real server on the real base for the whole session; the tests that break it come last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.prepare import prepare
from loadtests.live import LiveServer
from tests.engine.strong import write_strong_adapter

STRONG = ("strong-a", "strong-b", "strong-c")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the engine, and run what kills it after everything else."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)
    items.sort(key=lambda item: item.path.parent == here and item.path.name == "test_faults.py")


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The demo store, three adapters more that are too strong to overlook, and a server on it."""
    from adapters.catalog import Catalog

    root = tmp_path_factory.mktemp("live")
    store = root / "store"
    prepare(store)
    with Catalog.open(store) as catalog:
        descriptor = catalog.base_descriptor("smollm2")
        for seed, name in enumerate(STRONG):
            source = root / name
            write_strong_adapter(source, descriptor, seed=seed)
            catalog.register(str(source), name=name, base="smollm2")
    # Fewer slots than adapters, so that they have to be swapped.
    server = LiveServer(
        store,
        *("--base", "smollm2", "--port", "0", "--slots", "8"),
        # Sooner than by default, for the test that has the engine hang.
        *("--hang-timeout", "20"),
    )
    server.start()
    yield server
    server.stop()
