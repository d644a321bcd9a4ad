"""A lean client: it asks an engine directly, so that what is measured is the engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from types import TracebackType

import aiohttp

from adapters.errors import ToolFailed

_TOKEN_IDS = range(1000, 30000)


@dataclass(frozen=True, slots=True)
class Answered:
    """Seconds to the first token and to the end, and how many tokens came."""

    first: float
    total: float
    tokens: int


class Asker:
    """Asks one engine on its unix socket, each request on a connection of its own."""

    def __init__(self, name: str, socket: str, session: int = 0) -> None:
        """`session`: the engine's first process, which leads all of its processes."""
        self.name = name
        self.session = session
        # A round of stock vLLM's LoRA takes half a minute.
        timeout = aiohttp.ClientTimeout(total=600)
        connector = aiohttp.UnixConnector(socket, limit=0, force_close=True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def first_token(self, models: Sequence[str], prompt_tokens: int, seed: str) -> float:
        """Median seconds to the first token of requests sent at once, one to each of `models`."""
        answers = await self._all(models, prompt_tokens, 1, seed)
        return median(answer.first for answer in answers)

    async def decode(
        self, models: Sequence[str], prompt_tokens: int, tokens: int, seed: str
    ) -> float:
        """Output tokens/s of as many streams at once as there are `models`, from the first byte
        sent to the last token received."""
        began = time.perf_counter()
        answers = await self._all(models, prompt_tokens, tokens, seed)
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - began)

    async def _all(
        self, models: Sequence[str], prompt_tokens: int, tokens: int, seed: str
    ) -> list[Answered]:
        # Token ids: exactly so many on every side, and no other round's prompt in a prefix cache.
        random = Random(seed)
        prompts = [random.choices(_TOKEN_IDS, k=prompt_tokens) for _ in models]
        work = [self.ask(m, p, tokens) for m, p in zip(models, prompts, strict=True)]
        return await asyncio.gather(*work)

    async def ask(self, model: str, prompt: Sequence[int], tokens: int) -> Answered:
        """One stream to its end. Raises ToolFailed unless all its tokens came."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        first, counted = 0.0, 0
        try:
            async with self._session.post("http://engine/v1/completions", json=body) as response:
                if response.status != 200:
                    told = (await response.text())[:300]
                    raise ToolFailed(f"{self.name} answered {response.status} for {model}: {told}")
                async for line in response.content:
                    if not line.startswith(b"data: {"):
                        continue
                    first = first or time.perf_counter() - began
                    usage = json.loads(line[6:]).get("usage")
                    counted = usage["completion_tokens"] if usage else counted
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ToolFailed(f"{self.name} broke off for {model}: {error or 'timeout'}") from error
        if counted != tokens:
            raise ToolFailed(f"{self.name} gave {counted} of {tokens} tokens for {model}")
        return Answered(first, time.perf_counter() - began, counted)
