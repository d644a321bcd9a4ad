"""More requests than the real engine takes at once: they wait in the gateway, and all are right."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import aiohttp
import pytest

from demo.expectations import EXPECTATIONS
from loadtests.live import LiveServer
from server.engine.command import STEP_TOKENS_PER_THREAD, worker_threads
from tests.engine.conftest import STRONG

pytestmark = pytest.mark.engine

MODELS = ("smollm2", *EXPECTATIONS, *STRONG)


def queues(live: LiveServer) -> Any:
    with urllib.request.urlopen(f"{live.url}/admin/v1/top", timeout=10) as response:
        return json.load(response)["queues"]


async def test_a_burst_waits_in_the_gateway_and_is_answered_as_alone(live: LiveServer) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def ask(model: str, stream: bool) -> tuple[str, int]:
            body = {
                "model": model,
                "prompt": "The capital of France is",
                "max_tokens": 4,
                "temperature": 0,
                "stream": stream,
            }
            async with client.post(f"{live.url}/v1/completions", json=body) as response:
                text = await response.text()
                assert response.status == 200, text
                waited = int(response.headers["x-adapterctl-queued"])
            if not stream:
                return json.loads(text)["choices"][0]["text"], waited
            events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
            parts = [json.loads(event)["choices"][0]["text"] for event in events]
            return "".join(parts), waited

        alone = {model: (await ask(model, False))[0] for model in MODELS}
        limit = 2 * (await asyncio.to_thread(queues, live))[0]["limit"]
        asked = [(MODELS[k % len(MODELS)], k % 6 == 0) for k in range(limit)]
        answered = await asyncio.gather(*(ask(model, stream) for model, stream in asked))
    for (model, _), (text, _) in zip(asked, answered, strict=True):
        assert text
        # Another batch rounds otherwise, which decides between words that are nearly as likely.
        # With these adapters nothing is near, and another one's weights would be seen.
        if model in STRONG:
            assert text == alone[model]
    # Twice as many as there are places.
    assert sum(waited > 0 for _, waited in answered) >= limit // 4
    async with asyncio.timeout(5):
        while (base := (await asyncio.to_thread(queues, live))[0])["in_flight"]:
            await asyncio.sleep(0.05)
    assert base["engine"] == "base"
    assert base["queued"] == base["places"] == base["adapters"] == 0
    assert base["slots"] == 8


async def test_a_stream_goes_on_while_a_long_prompt_is_read(live: LiveServer) -> None:
    """The prompt takes three steps or more, and each of them has a token for the stream."""
    prompt = [1000 + number for number in range(3 * STEP_TOKENS_PER_THREAD * worker_threads())]
    url, tokens = f"{live.url}/v1/completions", 0
    began = asyncio.Event()

    async def stream(client: aiohttp.ClientSession) -> None:
        nonlocal tokens
        body = {"model": "smollm2", "prompt": "Once", "max_tokens": 400, "ignore_eos": True}
        async with client.post(url, json={**body, "stream": True}) as response:
            async for line in response.content:
                tokens += line.startswith(b"data: {")
                if tokens == 5:
                    began.set()

    async with aiohttp.ClientSession() as client:
        streaming = asyncio.create_task(stream(client))
        await began.wait()
        before = tokens
        body = {"model": "pirate", "prompt": prompt, "max_tokens": 1}
        async with client.post(url, json=body) as response:
            assert response.status == 200, await response.text()
            assert (await response.json())["usage"]["prompt_tokens"] == len(prompt)
        # In one step it would be that of the step under way and one more.
        assert tokens - before >= 4
        streaming.cancel()
