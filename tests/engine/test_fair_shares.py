"""One tenant floods the real engine, with several keys: another one is not behind it.

What is counted is who had an answer before whom, whatever the seconds; the order in which the
engine is given requests is in tests/server/gateway/test_fair_shares.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import pytest

from adapters.catalog import Catalog
from loadtests.live import LiveServer
from tests.engine.keys_gone import wait_until_no_key_is_needed

PLACES = 6
FLOOD = 40
MODELS = ("smollm2", "strong-a", "strong-b", "strong-c")


@pytest.fixture
def keys(live: LiveServer) -> Iterator[dict[str, str]]:
    """Keys of two tenants; as long as they are there every server on the store needs one."""
    made = {}
    with Catalog.open(live.store) as catalog:
        for who in ("acme web", "acme batch", "beta app"):
            made[who] = catalog.create_key(["infer"], who, who.partition(" ")[0])
    yield {who: secret for who, (_, secret) in made.items()}
    with Catalog.open(live.store) as catalog:
        for key, _ in made.values():
            catalog.revoke_key(key)
    wait_until_no_key_is_needed(live)


@pytest.fixture
def with_keys(live: LiveServer, keys: dict[str, str]) -> Iterator[LiveServer]:
    """A second gateway at the same engine, which gives it little at once, so that many wait."""
    engine = str(live.engine()["address"])
    server = LiveServer(
        *(live.store, "--base", "smollm2", "--port", "0", "--engine-url", engine),
        *("--max-in-flight", str(PLACES)),
        log=live.store.parent / "fair.log",
    )
    server.start()
    yield server
    assert server.stop() == 0


async def test_who_asks_in_anothers_flood_is_not_behind_it(
    with_keys: LiveServer, keys: dict[str, str]
) -> None:
    ended: list[str] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(with_keys.url, connector=connector) as client:

        async def ask(who: str, model: str) -> int:
            body = {
                "model": model,
                "prompt": "The capital of France is",
                "max_tokens": 8,
                "ignore_eos": True,
                "temperature": 0,
            }
            headers = {"authorization": f"Bearer {keys[who]}"}
            async with client.post("/v1/completions", json=body, headers=headers) as response:
                text = await response.text()
                assert response.status == 200, text
                ended.append(who)
                return int(response.headers["x-adapterctl-queued"])

        # Each adapter has been read before.
        for model in (*MODELS, "pirate"):
            await ask("acme web", model)
        ended.clear()
        flood = [
            asyncio.create_task(ask(("acme web", "acme batch")[k % 2], MODELS[k % len(MODELS)]))
            for k in range(FLOOD)
        ]
        while len(ended) < 2:
            await asyncio.sleep(0.01)
        before = len(ended)
        await ask("beta app", "pirate")
        passed = len(ended) - 1 - before
        waited = await asyncio.gather(*flood)
    assert sum(wait > 0 for wait in waited) >= FLOOD // 2
    # Those that were at the engine, and as many that came to it while beta's was written.
    assert passed <= 2 * PLACES, f"{passed} of acme's {FLOOD} requests were answered before"
