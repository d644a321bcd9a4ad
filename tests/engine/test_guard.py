"""An adapter whose finite weights overflow harms only its own requests, on the real engine."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.catalog import Catalog
from loadtests.live import LiveServer, run_cli
from tests.engine.conftest import STRONG
from tests.engine.strong import write_strong_adapter

HUGE = "overflowing"
PROMPTS = ("The capital of France is", "Once upon a time there was", "2 + 2 =")
TOKENS = 12
# Both ways of asking, and a prompt that fills a block of the cache and a part of the next.
LONG = "All the king's horses and all the king's men. " * 20


@pytest.fixture(scope="module")
def live(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The session's server, and an adapter of weights that bfloat16 holds and products do not."""
    source = tmp_path_factory.mktemp("huge") / HUGE
    with Catalog.open(live.store) as catalog:
        write_strong_adapter(source, catalog.base_descriptor("smollm2"), seed=7)
        file = source / "adapter_model.safetensors"
        weights = {name: tensor * 1e25 for name, tensor in load_file(file).items()}
        assert all(bool(torch.isfinite(tensor.bfloat16()).all()) for tensor in weights.values())
        save_file(weights, file, metadata={"format": "pt"})
        catalog.register(str(source), name=HUGE, base="smollm2")
    yield live
    with Catalog.open(live.store) as catalog:
        catalog.rm(HUGE, force=True)


async def answers(live: LiveServer, models: list[str]) -> dict[tuple[str, str], str]:
    """What each model says to each prompt, all of them asked at once."""
    asked = [(model, prompt) for model in models for prompt in PROMPTS]
    async with live.async_client() as client:
        found = await asyncio.gather(
            *(
                client.completions.create(
                    model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
                )
                for model, prompt in asked
            )
        )
    texts = [answer.choices[0].text for answer in found]
    return dict(zip(asked, texts, strict=True))


async def refusal(live: LiveServer, prompt: str, **named: Any) -> openai.APIStatusError:
    """What a request to the huge adapter ends with."""
    client = live.async_client().with_options(max_retries=0)
    async with client:
        with pytest.raises(openai.APIStatusError) as caught:
            found = await client.completions.create(
                model=HUGE, prompt=prompt, max_tokens=TOKENS, temperature=0, **named
            )
            if isinstance(found, openai.AsyncStream):
                async for _ in found:
                    pass
    return caught.value


def admin(live: LiveServer, method: str, path: str) -> Any:
    request = urllib.request.Request(f"{live.url}/admin/v1/{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


async def test_others_in_its_batch_answer_as_alone_and_it_is_quarantined_until_lifted(
    live: LiveServer,
) -> None:
    models = ["smollm2", *STRONG[:2]]
    alone = {}
    for model in models:
        alone.update(await answers(live, [model]))
    others = asyncio.create_task(answers(live, models))
    await asyncio.sleep(0)
    failed = await asyncio.gather(
        refusal(live, PROMPTS[0]), refusal(live, LONG), refusal(live, PROMPTS[1], stream=True)
    )
    assert await others == alone
    print([(f.status_code, f.body) for f in failed])
    # Whoever gets the blocks of the cache that it had.
    assert await answers(live, models) == alone
