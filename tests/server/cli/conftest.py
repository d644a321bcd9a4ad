"""A tiny real base, real PEFT adapters for it, and stores to use them in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import adapters.jobs.launching
from adapters.catalog import Catalog
from tests.adapters.registry.small_intake import SmallIntake, write_base, write_source
from tests.quantize.forks import Forked, Forks, forking
from tests.server.cli.command_line import CommandLine
from tests.server.cli.tiny_artifacts import TinyArtifacts, write_tiny_artifacts


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the person who runs the tests has set is not part of them."""
    for name in ("STORE", "URL", "KEY", "BASE", "HOST", "PORT"):
        monkeypatch.delenv(f"ADAPTERCTL_{name}", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifacts:
    """A base with random weights and two adapters that PEFT wrote for it."""
    return write_tiny_artifacts(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    """A store with base `small` and adapters `bot` (v1 = prod, v2) and `other`; no torch needed."""
    root = tmp_path / "store"
    with Catalog.init(root, intake=SmallIntake()) as catalog:
        catalog.base_add("small", write_base(tmp_path / "small"))
        for seed, name, tag in ((1, "bot", "prod"), (2, "bot", None), (3, "other", None)):
            source = write_source(tmp_path / f"source-{seed}", seed)
            catalog.register(str(source), name=name, base="small", tag=tag)
    yield root


@pytest.fixture
def on_small(small_store: Path) -> CommandLine:
    """The command line on `small_store`."""
    return CommandLine(("--store", str(small_store)))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that need not import torch."""
    with forking() as forks:
        yield forks


@pytest.fixture
def forked(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Forked:
    """Jobs that this process orders, itself or as a server, begin at once."""
    forked = Forked(forks)
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked)
    return forked
