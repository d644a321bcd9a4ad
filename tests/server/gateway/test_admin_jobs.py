"""Registrations in child processes: their events, and what ends them."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import uvloop

from adapters.catalog import Catalog
from adapters.errors import AdapterctlError
from server.gateway import admin_jobs
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts, write_tiny_artifacts

EVENTS = {"Accept": "application/x-ndjson", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyArtifacts:
    return write_tiny_artifacts(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def store(tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jobs") / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", tiny.base)
    return root


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[str]:
    with admin_server(store) as url:
        yield url


def post(
    url: str, path: str, body: object, headers: dict[str, str]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    connection.request("POST", f"/admin/v1{path}", json.dumps(body), headers)
    return connection, connection.getresponse()


def order(source: Path, name: str, **more: object) -> dict[str, object]:
    return {"source": str(source), "name": name, "base": "tiny", **more}


def workers() -> list[psutil.Process]:
    """The workers that this process has started."""
    found = []
    for child in psutil.Process().children():
        try:
            if "server.cli.worker" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_a_worker() -> psutil.Process:
    deadline = time.monotonic() + 30
    while not (found := workers()):
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.01)
    return found[0]


def wait_for_none() -> None:
    deadline = time.monotonic() + 30
    while workers():
        assert time.monotonic() < deadline, "a worker stayed behind"
        time.sleep(0.05)


def wait_for_its_end(worker: psutil.Process) -> None:
    """It is no worker any more before it is gone: a process that is ending has no command line."""
    deadline = time.monotonic() + 30
    while worker.is_running():
        assert time.monotonic() < deadline, "the worker did not end"
        time.sleep(0.02)


def staging(store: Path) -> list[Path]:
    return list((store / "staging").iterdir())


def test_events_tell_steps_progress_and_the_result(server: str, tiny: TinyArtifacts) -> None:
    connection, answer = post(server, "/adapters", order(tiny.first, "told"), EVENTS)
    assert answer.status == 200
    events = [json.loads(line) for line in answer]
    connection.close()
    assert any("step" in event for event in events)
    assert all(0 <= e["progress"][0] <= e["progress"][1] for e in events if "progress" in e)
    assert events[-1]["result"]["name"] == "told"
    # What was registered is in the snapshot by the time the client hears of it.
    assert "told" in [row["name"] for row in CommandLine(("--server", server)).ok("ls")]


def test_an_early_refusal_keeps_its_status(server: str, tiny: TinyArtifacts) -> None:
    body = order(tiny.first, "x", base="nothing")
    connection, answer = post(server, "/adapters", body, EVENTS)
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (404, "base_not_found")
    connection.close()


@pytest.mark.parametrize("headers", [EVENTS, {"Content-Type": "application/json"}], ids=str)
def test_a_client_that_hangs_up_ends_its_job(
    server: str, store: Path, tiny: TinyArtifacts, headers: dict[str, str]
) -> None:
    address = urlsplit(server)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    connection.request("POST", "/admin/v1/adapters", json.dumps(order(tiny.first, "gone")), headers)
    worker = wait_for_a_worker()
    deadline = time.monotonic() + 30
    while not staging(store):
        assert time.monotonic() < deadline, "the job did not begin"
        time.sleep(0.01)
    connection.close()
    wait_for_none()
    wait_for_its_end(worker)
    assert staging(store) == []
    assert "gone" not in [row["name"] for row in CommandLine(("--server", server)).ok("ls")]


def test_a_killed_worker_is_a_clear_error(server: str, tiny: TinyArtifacts) -> None:
    address = urlsplit(server)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    body = json.dumps(order(tiny.first, "killed"))
    connection.request("POST", "/admin/v1/adapters", body, {"Content-Type": "application/json"})
    wait_for_a_worker().send_signal(signal.SIGKILL)
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert (answer.status, error["code"]) == (500, "internal_error")
    assert "signal 9" in error["message"]
    # And the next one works.
    assert CommandLine(("--server", server)).ok(
        "register", str(tiny.first), "--name", "after", "--base", "tiny"
    )["created"]


async def drained(events: AsyncGenerator[admin_jobs.Event]) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_worker_killed_before_its_order_is_a_clear_error(
    runner: Callable[[Coroutine[Any, Any, Any]], Any],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = admin_jobs._start

    async def started_and_killed() -> Process:
        child = await start()
        child.kill()
        await child.wait()
        # The loop notices the closed pipe, as it does on a busy machine.
        await asyncio.sleep(0.1)
        return child

    monkeypatch.setattr(admin_jobs, "_start", started_and_killed)
    events = admin_jobs.JobRunner(store, lambda: None).events("verify", None, "test")
    with pytest.raises(AdapterctlError, match="killed by signal 9"):
        runner(drained(events))


def test_two_at_once_take_turns(server: str, tiny: TinyArtifacts) -> None:
    answers = [
        post_later(server, order(source, name))
        for source, name in ((tiny.first, "left"), (tiny.second, "right"))
    ]
    wait_for_a_worker()
    seen = 0
    while any(child.poll() is None for child in answers):
        seen = max(seen, len(workers()))
        time.sleep(0.02)
    assert seen == 1
    documents = [json.loads(child.communicate()[0]) for child in answers]
    assert [document["name"] for document in documents] == ["left", "right"]


def post_later(server: str, body: dict[str, Any]) -> subprocess.Popen[str]:
    """Another process that registers; its stdout is the answer."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli.main", "--server", server, "--json", "register"),
            *(body["source"], "--name", body["name"], "--base", body["base"]),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_worker_ends_with_its_server(store: Path, tiny: TinyArtifacts) -> None:
    """A closed stdin is all that a killed server leaves."""
    reading, writing = os.pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "server.cli.worker"],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    os.close(reading)
    arguments = {**order(tiny.second, "orphan"), "tag": None, "format": None, "dry_run": False}
    job = {
        "store": str(store),
        "operation": "register",
        "arguments": arguments,
        "actor": "test",
    }
    os.write(writing, json.dumps(job).encode() + b"\n")
    assert worker.stdout is not None
    assert "step" in json.loads(worker.stdout.readline())
    os.close(writing)
    assert worker.wait(timeout=30) != 0
    worker.stdout.close()
    assert staging(store) == []
    with Catalog.open(store) as catalog:
        assert "orphan" not in [adapter.name for adapter in catalog.adapters()]
