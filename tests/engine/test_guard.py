"""An adapter whose finite weights overflow harms only its own requests, on the real engine."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from adapters.catalog import Catalog
from adapters.errors import OutputNotFinite, Quarantined
from loadtests.live import LiveServer
from tests.engine.conftest import STRONG
from tests.engine.overflowing import write_overflowing_adapter
from tests.engine.test_answers import QUESTIONS, assert_same_up_to_noise, tokens_of

NAME = "overflowing"
MODELS = ("smollm2", "pirate", *STRONG[:2])
PROMPTS = ("The capital of France is", "Once upon a time there was", "2 + 2 =")
TOKENS = 12
WORD = " the"
# Fills a block of the cache, and a part of the next.
LONG = "Where are the king's horses?" + " And the king's men?" * 30


@pytest.fixture(scope="module")
def word(live: LiveServer) -> int:
    """The token that is WORD."""
    body = json.dumps({"model": "smollm2", "prompt": WORD, "add_special_tokens": False}).encode()
    request = urllib.request.Request(
        f"{live.url}/v1/tokenize", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        (token,) = json.load(response)["tokens"]
    return int(token)


@pytest.fixture(scope="module")
def overflowing(
    live: LiveServer, word: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Catalog]:
    """The session's server with an adapter that overflows wherever it reads WORD."""
    source = tmp_path_factory.mktemp("source") / NAME
    with Catalog.open(live.store) as catalog:
        write_overflowing_adapter(source, Path(catalog.base("smollm2").path), word)
        catalog.register(str(source), name=NAME, base="smollm2")
        # Whatever changes something has the server look at the registry.
        request(live, "POST", "/admin/v1/gc", {"dry_run": True})
        yield catalog
        catalog.rm(NAME, force=True)


async def answers(live: LiveServer) -> dict[str, list[Any]]:
    """What each of the others says, all of them asked at once."""
    async with live.async_client() as client:
        found = await asyncio.gather(*(tokens_of(client, name, QUESTIONS[0]) for name in MODELS))
    return dict(zip(MODELS, found, strict=True))


def assert_same(alone: dict[str, list[Any]], together: dict[str, list[Any]]) -> None:
    for name in MODELS:
        assert_same_up_to_noise(alone[name], together[name], name)


async def finite(live: LiveServer) -> None:
    """Where it does not read the word it answers."""
    async with live.async_client().with_options(max_retries=0) as client:
        for prompt in PROMPTS:
            await client.completions.create(
                model=NAME, prompt=prompt, max_tokens=TOKENS, temperature=0
            )


async def failure(live: LiveServer, prompt: str) -> openai.APIStatusError:
    """How a request to the adapter ends that is answered as a whole."""
    async with live.async_client().with_options(max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.completions.create(
                model=NAME, prompt=prompt, max_tokens=TOKENS, temperature=0
            )
    return caught.value


async def broken_stream(live: LiveServer, word: int) -> tuple[str, openai.APIError]:
    """A chat whose first word is made to be WORD: what came of it, and how it ended."""
    text = ""
    async with live.async_client().with_options(max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=TOKENS,
            temperature=0,
            logit_bias={str(word): 100},
            stream=True,
        )
        with pytest.raises(openai.APIError) as caught:
            async for part in stream:
                text += part.choices[0].delta.content or ""
    return text, caught.value


async def quarantined(live: LiveServer) -> openai.APIStatusError:
    """What is answered from then on."""
    found = await failure(live, PROMPTS[0])
    assert (found.status_code, found.code) == (404, Quarantined.code)
    assert f"adapterctl quarantine {NAME}:v1 --lift" in found.message
    return found


def request(live: LiveServer, method: str, path: str, body: Any = None) -> bytes:
    """The bytes of an answer, whatever its status."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(live.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        return error.read()


def written(live: LiveServer) -> dict[str, Any]:
    """The quarantine, which is in the registry a moment after the answer."""
    deadline = time.monotonic() + 10
    while True:
        shown = json.loads(request(live, "GET", "/admin/v1/deployments"))
        for row in shown:
            if row["state"] == "quarantined":
                return dict(row["deployment"])
        assert time.monotonic() < deadline, shown


def lift(live: LiveServer) -> None:
    request(live, "DELETE", f"/admin/v1/quarantines/{NAME}")


async def test_others_in_its_batch_answer_as_alone_and_it_is_quarantined_until_lifted(
    live: LiveServer, overflowing: Catalog, word: int
) -> None:
    async with live.async_client() as client:
        alone = {name: await tokens_of(client, name, QUESTIONS[0]) for name in MODELS}
    await finite(live)

    others = asyncio.create_task(answers(live))
    text, error = await broken_stream(live, word)
    assert_same(alone, await others)
    assert (text, error.code) == (WORD, OutputNotFinite.code)
    await quarantined(live)
    found = await asyncio.to_thread(written, live)
    assert (found["adapter"], found["number"], found["actor"]) == (NAME, 1, "engine")

    await asyncio.to_thread(lift, live)
    others = asyncio.create_task(answers(live))
    ended = await failure(live, LONG)
    assert (ended.status_code, ended.code) == (502, OutputNotFinite.code)
    assert f"{NAME}:v1" in ended.message
    assert_same(alone, await others)
    # Whoever gets the blocks of the cache that it had.
    assert_same(alone, await answers(live))
    await quarantined(live)
    await asyncio.to_thread(written, live)
    kinds = [change.kind for change in overflowing.lane_history(NAME)]
    assert kinds == ["quarantine", "lift", "quarantine"]
    await asyncio.to_thread(lift, live)
    await finite(live)
    metrics = (await asyncio.to_thread(request, live, "GET", "/metrics")).decode()
    assert f'adapterctl_quarantines_total{{adapter="{NAME}"}} 2.0' in metrics
    assert 'adapterctl_registry_entries{kind="quarantined"} 0.0' in metrics


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": LONG, "max_output_tokens": TOKENS}),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": LONG}], "max_tokens": TOKENS},
        ),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_every_route_says_so(
    live: LiveServer, overflowing: Catalog, path: str, body: dict[str, Any], streaming: bool
) -> None:
    answer = request(live, "POST", path, {**body, "model": NAME, "stream": streaming})
    last = answer.strip().split(b"\n\n")[-1]
    document = json.loads(last.rpartition(b"data: ")[2])
    error = document.get("error", document)
    assert f"{NAME}:v1, which gave NaN or infinity" in error["message"], answer
    written(live)
    lift(live)
