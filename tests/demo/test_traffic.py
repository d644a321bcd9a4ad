"""The demo's traffic, against a server that counts what it is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from demo import traffic
from demo.prepare import BASE_NAME


class Counting:
    """Answers every chat with `status` and notes who asked for what."""

    def __init__(self, status: int = 200):
        self.status = status
        self.models: Counter[str] = Counter()
        self.keys: set[str | None] = set()

    async def chat(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        assert body["messages"][0]["content"]
        self.models[body["model"]] += 1
        self.keys.add(request.headers.get("authorization"))
        return web.Response(status=self.status)

    def server(self) -> TestServer:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        return TestServer(app)


async def test_it_asks_base_and_adapters_with_the_key() -> None:
    counting = Counting()
    async with counting.server() as server:
        counts = await traffic.run(
            str(server.make_url("/")), key="ak-1", users=4, pause=0.005, seconds=0.5, seed=1
        )
    assert counts == {"200": sum(counting.models.values())}
    assert counting.models.keys() == set(traffic.MODELS)
    # The base is the busiest, the last adapter the least busy.
    assert counting.models[BASE_NAME] > counting.models[traffic.MODELS[-1]]
    assert counting.keys == {"Bearer ak-1"}


async def test_refusals_and_silence_are_counted_and_not_hammered() -> None:
    counting = Counting(429)
    async with counting.server() as server:
        url = str(server.make_url("/"))
        refused = await traffic.run(url, key=None, users=2, pause=0.001, seconds=0.3, seed=1)
    unanswered = await traffic.run(url, key=None, users=2, pause=0.001, seconds=0.3, seed=1)
    # Once each: after a refusal it waits longer than these took.
    assert (refused, unanswered) == ({"429": 2}, {"error": 2})


def test_a_missing_key_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = traffic.main(["http://127.0.0.1:1", "--key-file", str(tmp_path / "none")])
    assert status == 1
    assert "cannot be read" in capsys.readouterr().err
