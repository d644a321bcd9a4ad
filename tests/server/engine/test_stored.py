"""The engine of a model in the store: what it holds, where it listens, where it logs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import BaseError, VersionNotFound
from adapters.store.gc import collect
from adapters.store.layout import StoreLayout
from adapters.store.leases import held_digests
from adapters.store.publish import publish, seal, stage
from server.engine.command import EngineCommand
from server.engine.memory import GIB
from server.engine.merged import MergedModel
from server.engine.process import EngineProcess
from server.engine.stored import KEPT_LOGS, StoredEngine, merged_pool
from server.gateway.runtime import runtime_directory
from server.settings import ServeSettings
from tests.server.engine.small_pool import SMALL_ENGINE, status
from tests.server.engine.test_memory import write_model


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    layout = StoreLayout(tmp_path / "store")
    for directory in layout.directories():
        directory.mkdir()
    return layout


@pytest.fixture
def stored(layout: StoreLayout) -> MergedModel:
    with stage(layout) as staging:
        write_model(staging.files, {"model.embed_tokens.weight": ("BF16", (32, 8))})
        sealed = seal(layout, staging, base_digest="sha256:" + "b" * 64)
        publish(layout, staging, sealed)
    return MergedModel(sealed.digest, layout.blob(sealed.digest), "pirate:v1", "b")


@pytest.fixture
def settings(layout: StoreLayout) -> ServeSettings:
    return ServeSettings(store=layout.root, base="b", start_timeout=20, stop_timeout=1)


def test_gc_leaves_the_model_alone_until_nothing_of_its_engine_is_left(
    layout: StoreLayout, stored: MergedModel, settings: ServeSettings, tmp_path: Path
) -> None:
    def nothing() -> Collection[str]:
        return ()

    engine = StoredEngine(settings, layout, tmp_path, None, stored)
    assert held_digests(layout) == {}
    engine.hold()
    assert list(held_digests(layout)) == [stored.digest]
    assert collect(layout, nothing, nothing, dry_run=False).kept_for_engines == (stored.digest,)
    engine.release()
    engine.release()
    assert collect(layout, nothing, nothing, dry_run=False).blobs == (stored.digest,)


def test_two_servers_may_run_the_same_model(
    layout: StoreLayout, stored: MergedModel, settings: ServeSettings, tmp_path: Path
) -> None:
    engines = [StoredEngine(settings, layout, tmp_path, None, stored) for _ in range(2)]
    for engine in engines:
        engine.hold()
    engines[0].release()
    assert list(held_digests(layout)) == [stored.digest]
    engines[1].release()
    assert held_digests(layout) == {}


def test_a_model_whose_files_are_gone_is_not_started(
    layout: StoreLayout, stored: MergedModel, settings: ServeSettings, tmp_path: Path
) -> None:
    engine = StoredEngine(settings, layout, tmp_path, None, stored)
    shutil.rmtree(stored.path)
    with pytest.raises(VersionNotFound):
        engine.hold()
    engine.release()
    with pytest.raises(BaseError):
        StoredEngine(settings, layout, tmp_path, None, stored)


def test_logs_of_models_that_were_served_once_do_not_pile_up(
    layout: StoreLayout, stored: MergedModel, settings: ServeSettings, tmp_path: Path
) -> None:
    for number in range(KEPT_LOGS + 5):
        log = layout.logs / f"merged-{number:012x}.log"
        log.write_text("x")
        log.with_suffix(".log.1").write_text("x")
        os.utime(log, (number, number))
    (layout.logs / "engine.log").write_text("x")
    engine = StoredEngine(settings, layout, tmp_path, None, stored)
    engine.hold()
    engine.release()
    left = sorted(log.name for log in layout.logs.iterdir())
    assert len(left) == 2 * (KEPT_LOGS - 1) + 1
    assert "engine.log" in left
    assert f"merged-{5:012x}.log" not in left
    assert f"merged-{6:012x}.log" in left


class SmallSpawner:
    """Starts a small process in place of what the command would run."""

    def __init__(self) -> None:
        self.commands: list[EngineCommand] = []

    async def spawn(self, command: EngineCommand) -> EngineProcess:
        self.commands.append(command)
        argv = (sys.executable, str(SMALL_ENGINE), str(command.socket), "serve")
        return await EngineProcess.spawn(replace(command, argv=argv))


async def test_the_pool_of_a_store_runs_its_models_under_their_digests(
    layout: StoreLayout, stored: MergedModel, settings: ServeSettings
) -> None:
    spawner = SmallSpawner()
    with runtime_directory() as runtime:
        pool = merged_pool(settings, runtime, limit=100 * GIB, base=lambda: GIB, spawner=spawner)
        try:
            with await pool.lease(stored, wait=20) as hold:
                assert await hold.transport().healthy(timeout=5)
                argv = spawner.commands[0].argv
                assert argv[argv.index("--served-model-name") + 1] == hold.engine_model
                assert argv[argv.index("--model") + 1] == str(stored.path)
            assert pool.memory().merged == status(pool, "pirate:v1").memory > GIB
            assert (layout.logs / f"merged-{stored.digest[7:19]}.log").is_file()
            assert list(held_digests(layout)) == [stored.digest]
        finally:
            await pool.close()
    assert held_digests(layout) == {}
