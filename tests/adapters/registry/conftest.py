"""A store with one base, and artifacts to register."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """A fresh store with the base `small`."""
    with Catalog.init(tmp_path / "store", intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        yield catalog


@pytest.fixture
def source(tmp_path: Path) -> Callable[[int], str]:
    """Makes the artifact with that seed."""

    def make(seed: int) -> str:
        return str(write_source(tmp_path / f"source-{seed}", seed))

    return make


@pytest.fixture
def register(catalog: Catalog, source: Callable[[int], str]) -> Callable[..., str]:
    """Registers the artifact with that seed; returns the version's label."""

    def run(seed: int, name: str = "bot", tag: str | None = None) -> str:
        return catalog.register(source(seed), name=name, base="small", tag=tag).version

    return run
