"""Real servers, as processes: a rolling restart, settings read again, an end that is one."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from adapters.catalog import Catalog
from server.running import find_servers
from tests.server.cli.tiny_artifacts import write_tiny_artifacts
from tests.server.gateway.scripted import DONE, ScriptedEngine, chunk

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the-secret-of-this-test"}]}


class Server:
    """`adapterctl serve` in front of the scripted engine; its log is kept."""

    def __init__(self, store: Path, engine: ScriptedEngine, *arguments: str):
        self.store = store
        self.log = store.parent / f"log-{len(list(store.parent.glob('log-*')))}"
        self._arguments = (
            *(sys.executable, "-m", "server.cli.main", "--store", str(store), "serve"),
            *("--base", "tiny", "--engine-url", f"unix:{engine.socket}", "--log-format", "json"),
            *arguments,
        )

    async def start(self) -> Server:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._arguments, stdout=asyncio.subprocess.DEVNULL, stderr=log
            )
        return self

    async def announced(self) -> str:
        async with asyncio.timeout(60):
            while True:
                for server in find_servers(self.store):
                    if server.pid == self.process.pid:
                        return server.url
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)

    async def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 30)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Of the log, each of which is one document."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in found if event is None or line["event"] == event]

    async def says(self, text: str) -> dict[str, Any]:
        """The first line that holds it."""
        async with asyncio.timeout(20):
            while True:
                for line in self.lines():
                    if text in line["event"]:
                        return line
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifacts(tmp_path_factory.mktemp("tiny")).base


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    root = tmp_path / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", base)
    return root


async def answered(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    """Whole or as a stream, some of them slow enough to be under way at any moment."""
    await asyncio.sleep(0.02)
    if not document.get("stream"):
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        return web.json_response({"model": document["model"], "choices": [], "usage": usage})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for part in ("a", "b", "c"):
        await response.write(chunk(part, "tiny"))
        await asyncio.sleep(0.05)
    await response.write(DONE)
    return response


async def test_a_rolling_restart_loses_no_request(engine: ScriptedEngine, store: Path) -> None:
    engine.handler = answered
    old = await Server(store, engine, "--port", "0").start()
    url = await old.announced()
    await _ready(url)
    stop, outcomes = asyncio.Event(), Counter[str]()
    clients = [asyncio.ensure_future(_client(url, stop, outcomes, index)) for index in range(6)]
    port = url.rpartition(":")[2]
    new = await Server(store, engine, "--port", port, "--take-over").start()
    try:
        assert await asyncio.wait_for(old.process.wait(), 60) == 0
        before = outcomes.total()
        while outcomes.total() < before + 50:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*clients)
    finally:
        assert await new.end() == 0
    assert set(outcomes) == {"ok"}
    assert outcomes.total() == len(engine.received)
    # Each request is a line of exactly one of the two logs, and none holds what was asked.
    lines = [
        line
        for server in (old, new)
        for line in server.lines("request")
        if line["path"].startswith("/v1")
    ]
    assert len(lines) == len(engine.received)
    assert len({line["request_id"] for line in lines}) == len(lines)
    assert all(line["adapter"] == "tiny" and line["status"] == 200 for line in lines)
    assert "the-secret-of-this-test" not in old.log.read_text() + new.log.read_text()


async def _client(url: str, stop: asyncio.Event, outcomes: Counter[str], index: int) -> None:
    # Some keep their connection, others make one for each request.
    connector = aiohttp.TCPConnector(force_close=index % 2 == 0)
    body = {**ASK, "stream": index % 3 == 0}
    async with aiohttp.ClientSession(connector=connector) as client:
        while not stop.is_set():
            try:
                async with client.post(f"{url}/v1/chat/completions", json=body) as response:
                    text = await response.read()
                    whole = text.endswith(DONE) if body["stream"] else json.loads(text)
                    outcomes["ok" if response.status == 200 and whole else f"{text!r}"] += 1
            except aiohttp.ClientError as error:
                outcomes[repr(error)] += 1


async def _ready(url: str) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)


async def test_sighup_reads_the_settings_again(
    engine: ScriptedEngine, store: Path, tmp_path: Path
) -> None:
    engine.handler = answered
    config = tmp_path / "serve.toml"
    config.write_text("max_body_bytes = 2000\n")
    server = await Server(store, engine, "--port", "0", "--config", str(config)).start()
    url = await server.announced()
    await _ready(url)
    try:
        assert await _status(url, padding=4000) == 413
        config.write_text(
            "max_body_bytes = 8000\nqueue_limit = 7\njobs_at_once = 3\nlog_prompts=true"
        )
        server.process.send_signal(signal.SIGHUP)
        said = await server.says("'max_body_bytes' was 2000 and is 8000")
        assert (said["level"], said["logger"]) == ("info", "server.gateway.reloading")
        assert (await server.says("'jobs_at_once' has changed"))["level"] == "warning"
        assert await _status(url, padding=4000) == 200
        config.write_text("max_body_bytes = 3")
        server.process.send_signal(signal.SIGHUP)
        said = await server.says("the settings stay as they were")
        assert "max_body_bytes" in said["event"]
        assert await _status(url, padding=4000) == 200
    finally:
        assert await server.end() == 0
    requests = [line for line in server.lines("request") if line["path"].startswith("/v1")]
    assert [line["outcome"] for line in requests] == ["request_too_large", "ok", "ok"]
    # Switched on in between.
    assert "prompt" not in requests[0]
    assert requests[1]["prompt"] == ASK["messages"]


async def test_a_quota_that_is_changed_counts_from_the_next_request(
    engine: ScriptedEngine, store: Path, tmp_path: Path
) -> None:
    engine.handler = answered
    config = tmp_path / "serve.toml"

    def quota(requests: int) -> str:
        return f"[tenant_quotas.default]\nrequests_per_minute = {requests}\n"

    async def changed(text: str) -> None:
        """As an operator does it: the file, and then the signal."""
        config.write_text(text)
        before = len(server.lines("read the settings again: 1 of them changed"))
        server.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while len(server.lines("read the settings again: 1 of them changed")) == before:
                await asyncio.sleep(0.05)

    config.write_text(quota(2))
    server = await Server(store, engine, "--port", "0", "--config", str(config)).start()
    url = await server.announced()
    await _ready(url)
    try:
        assert [await _left(url) for _ in range(3)] == [(200, "1"), (200, "0"), (429, "0")]
        await changed(quota(4))
        # What was used before still counts, and what was refused was not used.
        assert [await _left(url) for _ in range(3)] == [(200, "1"), (200, "0"), (429, "0")]
        await changed(quota(1))
        assert await _left(url) == (429, "0")
        await changed("")
        assert [await _left(url) for _ in range(2)] == [(200, None)] * 2
    finally:
        assert await server.end() == 0
    assert len(engine.received) == 6


async def _left(url: str) -> tuple[int, str | None]:
    """The status of a request, and how many more its tenant has in this minute."""
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/chat/completions", json=ASK) as response,
    ):
        return response.status, response.headers.get("x-ratelimit-remaining-requests")


async def _status(url: str, *, padding: int) -> int:
    body = {**ASK, "padding": "x" * padding}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        await response.read()
        return response.status
