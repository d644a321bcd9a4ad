"""What one tenant has asked the real engine does not make it faster for another: vLLM's own count
of tokens that it found in its prefix cache."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from loadtests.live import LiveServer
from server.engine.transport import EngineAddress, EngineTransport

# Longer than several blocks of the CPU engine's cache, which are found or not as a whole.
LONG = " ".join(f"Sentence {k} is about harbours, ships and the weather at sea." for k in range(24))
USER = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1}
HITS = re.compile(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def behind_proxy(live: LiveServer) -> Iterator[LiveServer]:
    """A second gateway at the same engine: it believes a proxy's word about tenants."""
    engine = str(live.engine()["address"])
    server = LiveServer(
        *(live.store, "--base", "smollm2", "--port", "0", "--engine-url", engine),
        *("--tenant-header", "x-tenant"),
    )
    server.start()
    yield server
    assert server.stop() == 0


def ask(server: LiveServer, path: str, body: dict[str, Any], tenant: str) -> None:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"content-type": "application/json", "x-tenant": tenant},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        json.load(answer)


async def hits(server: LiveServer) -> float:
    address = EngineAddress.parse(str(server.engine()["address"]))
    transport = EngineTransport(address, 5)
    try:
        response = await transport.send("GET", "/metrics", body=None, headers={})
        return sum(map(float, HITS.findall((await response.read()).decode())))
    finally:
        await transport.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": LONG, "max_tokens": 1}),
        ("/v1/chat/completions", USER),
        ("/v1/messages", USER),
        ("/v1/responses", {"input": LONG, "max_output_tokens": 16}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_prompt_is_found_again_by_the_tenant_that_sent_it_only(
    behind_proxy: LiveServer, path: str, body: dict[str, Any]
) -> None:
    def found(tenant: str, **more: str) -> float:
        before = asyncio.run(hits(behind_proxy))
        ask(behind_proxy, path, {"model": "smollm2", **body, **more}, tenant)
        return asyncio.run(hits(behind_proxy)) - before

    # The paths share a prompt's text, so each has tenants of its own.
    one, other = f"one{path.replace('/', '-')}-x", f"other{path.replace('/', '-')}-x"
    assert found(one) == 0
    assert found(one) > 100
    assert found(other) == 0
    assert found(other, cache_salt=f"tenant-{one}") == 0
