"""`python -m demo.traffic URL`: a few users who ask the demo's adapters, so that there is something
to see. A modest, steady load for trying things out; `loadtests/` measures.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import aiohttp

from demo.expectations import EXPECTATIONS, PROMPTS
from demo.prepare import BASE_NAME

MODELS: Final = (BASE_NAME, *EXPECTATIONS)
# How often each is asked: adapters differ in how busy they are, and the panels should show it.
WEIGHTS: Final = tuple(2 ** (len(MODELS) - place) for place in range(len(MODELS)))
RETRY_SECONDS: Final = 2.0
TIMEOUT: Final = aiohttp.ClientTimeout(total=120)


async def run(
    url: str, *, key: str | None, users: int, pause: float, seconds: float | None, seed: int
) -> dict[str, int]:
    """Ask until `seconds` are over (None: for ever); what came back, counted by HTTP status.

    Each of `users` waits `pause` seconds on average between an answer and its next question.
    `error` counts questions that got no answer at all; the server may still be starting.
    """
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    counts: dict[str, int] = {}
    end = None if seconds is None else time.monotonic() + seconds
    async with aiohttp.ClientSession(url, headers=headers, timeout=TIMEOUT) as session:
        await asyncio.gather(
            *(
                _user(session, random.Random(seed + user), pause, end, counts)
                for user in range(users)
            )
        )
    return counts


async def _user(
    session: aiohttp.ClientSession,
    chance: random.Random,
    pause: float,
    end: float | None,
    counts: dict[str, int],
) -> None:
    while end is None or time.monotonic() < end:
        outcome = await _ask(session, chance)
        counts[outcome] = counts.get(outcome, 0) + 1
        wait = chance.expovariate(1 / pause) if outcome == "200" else RETRY_SECONDS
        if end is not None:
            wait = min(wait, max(0.0, end - time.monotonic()))
        await asyncio.sleep(wait)


async def _ask(session: aiohttp.ClientSession, chance: random.Random) -> str:
    body = {
        "model": chance.choices(MODELS, WEIGHTS)[0],
        "messages": [{"role": "user", "content": chance.choice(PROMPTS)}],
        "max_tokens": chance.choice((16, 32, 48)),
        "stream": chance.random() < 0.8,
    }
    try:
        async with session.post("/v1/chat/completions", json=body) as answer:
            await answer.read()
            return str(answer.status)
    except (aiohttp.ClientError, TimeoutError):
        return "error"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo.traffic", description=__doc__)
    parser.add_argument("url", help="the server, as http://127.0.0.1:8000")
    parser.add_argument("--key-file", type=Path, help="a file with the API key")
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between questions")
    parser.add_argument("--seconds", type=float, help="how long; default: until it is stopped")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    key = None
    if options.key_file is not None:
        try:
            key = options.key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            print(f"error: {options.key_file} cannot be read: {error.strerror}", file=sys.stderr)
            return 1
    try:
        counts = asyncio.run(
            run(
                options.url,
                key=key,
                users=options.users,
                pause=options.pause,
                seconds=options.seconds,
                seed=options.seed,
            )
        )
    except KeyboardInterrupt:
        return 0
    print(", ".join(f"{outcome}: {count}" for outcome, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
