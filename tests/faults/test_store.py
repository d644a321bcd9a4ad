"""A server whose store cannot be written, is locked, or has other users: answers go on, changes are
refused in one sentence, and everybody ends with the same registry."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.catalog import Catalog
from loadtests.live import ADAPTERCTL
from tests.adapters.registry.test_disk_faults import NAMESPACE, namespaces_work
from tests.faults.served import Served, served
from tests.server.gateway.scripted import ScriptedEngine, answer

TAG = "/admin/v1/adapters/bot/tags/prod"


async def move_tag(server: Served, version: str) -> tuple[int, dict[str, Any]]:
    """PUT of `bot:prod` over the admin API."""
    async with server.client.put(server.live.url + TAG, json={"version": version}) as response:
        return response.status, await response.json()


async def version_that_answers(server: Served) -> str:
    async with server.client.post(
        server.live.url + "/v1/chat/completions",
        json={"model": "bot:prod", "messages": [{"role": "user", "content": "hi"}]},
    ) as response:
        assert response.status == 200
        return response.headers["x-adapterctl-version"]


async def test_a_registry_that_cannot_be_written_answers_and_says_so(
    own_store: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    """As on a full or failing disk: the kernel lets the server's process write no byte."""
    engine.handler = answer
    async with served(own_store, engine, log=tmp_path / "serve.log") as server:
        assert (await move_tag(server, "v2"))[0] == 200
        unlimited = resource.RLIM_INFINITY
        server.process.rlimit(resource.RLIMIT_FSIZE, (0, unlimited))
        status, document = await move_tag(server, "v3")
        assert status >= 500
        assert set(document["error"]) >= {"message", "type", "param", "code"}
        assert document["error"]["code"] in {"disk_full", "store_error", "store_read_only"}
        assert await version_that_answers(server) == "bot:v2"
        server.process.rlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert (await move_tag(server, "v3"))[0] == 200
        assert await version_that_answers(server) == "bot:v3"
    with Catalog.open(own_store) as catalog:
        assert [change.new for change in catalog.history("bot") if change.tag == "prod"] == [
            1,
            2,
            3,
        ]
        assert catalog.verify().ok


async def test_a_change_waits_for_who_holds_the_registry_and_answers_do_not(
    own_store: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.handler = answer
    async with served(own_store, engine, log=tmp_path / "serve.log") as server:
        holder = sqlite3.connect(own_store / "registry.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        change = asyncio.create_task(move_tag(server, "v2"))
        for _ in range(10):
            assert await version_that_answers(server) == "bot:v1"
        assert not change.done()
        holder.execute("ROLLBACK")
        holder.close()
        assert (await change)[0] == 200
        assert await version_that_answers(server) == "bot:v2"


@pytest.mark.skipif(not namespaces_work(), reason="needs unprivileged mount namespaces")
def test_a_server_on_a_store_that_is_read_only_says_so_in_one_sentence(
    store: Path, tmp_path: Path
) -> None:
    mount = tmp_path / "mounted"
    mount.mkdir()
    order = (
        f"mount --bind {store} {mount} && mount -o remount,bind,ro {mount} && exec "
        f"{sys.executable} -m server.cli.main --store {mount} serve --base tiny --port 0 "
        "--engine-url unix:/nowhere.sock"
    )
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", order], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("adapterctl: ")
    assert "cannot be written" in line


async def cli(store: Path, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *ADAPTERCTL,
        "--store",
        str(store),
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode()


async def test_two_servers_and_many_command_lines_share_one_registry(
    own_store: Path, engine: ScriptedEngine, tmp_path: Path
) -> None:
    engine.handler = answer
    async with (
        served(own_store, engine, log=tmp_path / "first.log") as first,
        served(own_store, engine, log=tmp_path / "second.log") as second,
    ):
        over = asyncio.Event()

        async def keep_asking(server: Served) -> set[str]:
            seen = set()
            while not over.is_set():
                seen.add(await version_that_answers(server))
            return seen

        asking = [asyncio.create_task(keep_asking(server)) for server in (first, second)]
        orders: list[tuple[str, ...]] = [("tag", "bot:prod", "v2"), ("ls",), ("gc",)]
        orders += [("tag", f"bot:t{number}", f"v{1 + number % 3}") for number in range(6)]
        done = await asyncio.gather(
            *(cli(own_store, *order) for order in orders),
            move_tag(first, "v3"),
            move_tag(second, "v3"),
        )
        for code, told in done[: len(orders)]:
            assert code == 0, told
        assert [status for status, _ in done[len(orders) :]] == [200, 200]
        # The last word, which both must have heard within a second or so.
        assert (await move_tag(second, "v1"))[0] == 200
        async with asyncio.timeout(5):
            while await version_that_answers(first) != "bot:v1":
                await asyncio.sleep(0.05)
        assert await version_that_answers(second) == "bot:v1"
        over.set()
        for seen in await asyncio.gather(*asking):
            assert seen <= {"bot:v1", "bot:v2", "bot:v3"}
    with Catalog.open(own_store) as catalog:
        tags = catalog.adapter("bot").tags
        assert {f"t{n}": 1 + n % 3 for n in range(6)}.items() <= tags.items()
        assert catalog.verify().ok


def test_a_store_that_vanishes_is_said_by_the_command_line(own_store: Path) -> None:
    shutil.move(own_store, own_store.with_name("elsewhere"))
    done = subprocess.run(
        [*ADAPTERCTL, "--store", str(own_store), "ls"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
