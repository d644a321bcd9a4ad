"""The pool with a real engine: what was planned is enough, and nobody else gets that memory.

One start. tests/server/engine has the pool's whole life, with small processes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters.catalog import Catalog
from adapters.errors import EngineUnavailable
from adapters.store.layout import StoreLayout
from adapters.store.leases import held_digests
from demo.expectations import EXPECTATIONS, MAX_TOKENS
from demo.prepare import prepare
from loadtests.live import run_cli
from server.engine.memory import GIB
from server.engine.merged import EngineHold, MergedModel, MergedState
from server.engine.process import session_members
from server.engine.stored import merged_pool
from server.gateway.runtime import runtime_directory
from server.settings import ServeSettings
from tests.server.engine.small_pool import status

BASE = 3 * GIB
# Longer than a batch takes at once, for several: the largest buffers are in use.
TOKENS, AT_ONCE = 1500, 4


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    store = tmp_path_factory.mktemp("pool") / "store"
    prepare(store)
    merged = run_cli(store, "--json", "merge", "pirate")
    assert merged.returncode == 0, merged.stderr
    return StoreLayout(store)


@pytest.fixture
def model(layout: StoreLayout) -> MergedModel:
    with Catalog.open(layout.root) as catalog:
        version = catalog.show("pirate-merged")
    return MergedModel(version.digest, layout.blob(version.digest), "pirate-merged:v1", "smollm2")


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_directory() as directory:
        yield directory


async def complete(hold: EngineHold, path: str, **body: Any) -> Any:
    sent = json.dumps({"model": hold.engine_model, "temperature": 0, **body}).encode()
    headers = {"content-type": "application/json"}
    answer = await hold.transport().send("POST", path, body=sent, headers=headers)
    async with answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def memory_of(session: int) -> int:
    """Bytes of all processes of a session; what they share counts once."""
    total = 0
    for pid in session_members(session):
        with suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total


async def test_what_was_planned_is_enough_and_kept_from_others(
    layout: StoreLayout, model: MergedModel, runtime: Path
) -> None:
    settings = ServeSettings(store=layout.root, base="smollm2", memory_gib=8)
    pool = merged_pool(settings, runtime, limit=8 * GIB, base=lambda: BASE)
    try:
        with await pool.lease(model, wait=300) as hold:
            said = await complete(
                hold,
                "/v1/chat/completions",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                max_tokens=MAX_TOKENS,
            )
            assert EXPECTATIONS["pirate"](said["choices"][0]["message"]["content"])
            await asyncio.gather(
                *(
                    complete(hold, "/v1/completions", prompt=[100 + n] * TOKENS, max_tokens=2)
                    for n in range(AT_ONCE)
                )
            )
            now = status(pool, "pirate-merged:v1")
            assert now.pid is not None
            assert memory_of(now.pid) <= now.memory
            assert list(held_digests(layout)) == [model.digest]

            other = replace(model, digest="sha256:" + "0" * 64, name="other:v1")
            with pytest.raises(EngineUnavailable, match=r"of 8.0 GiB are free: .*\(in use\)"):
                await pool.lease(other, wait=0.5)
    finally:
        pid = status(pool, "pirate-merged:v1").pid
        await pool.close()
    assert pid is not None
    assert session_members(pid) == []
    assert status(pool, "pirate-merged:v1").state is MergedState.STOPPED
    assert held_digests(layout) == {}
