"""Canaries on the real engine: garbage weights are taken back, an honest version is not."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import openai
import pytest

from adapters.catalog import Catalog
from adapters.lanes.models import LaneChange, Limits
from loadtests.live import LiveServer
from tests.engine.strong import write_strong_adapter

DEMO = Path(__file__).parents[2] / "demo" / "artifacts"
CLIENTS = 4
TOKENS = 12
SUBJECTS = ("the sea", "bread", "rain", "a lost key", "ships", "music", "winter", "a small dog")
FORMS = ("Tell me about {}.", "Write one sentence about {}.", "What do you think of {}?")


@dataclass(frozen=True)
class Reply:
    version: str
    role: str
    seconds: float


@pytest.fixture(scope="module")
def store(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """An adapter of three versions: a good one, garbage of finite size, another honest one."""
    with Catalog.open(live.store) as catalog:
        garbage = tmp_path_factory.mktemp("canary") / "garbage"
        write_strong_adapter(garbage, catalog.base_descriptor("smollm2"), seed=11)
        for source in (DEMO / "pirate", garbage, DEMO / "json"):
            catalog.register(str(source), name="watched", base="smollm2")
        catalog.tag("watched:latest", "v1")
        deadline = time.monotonic() + 30
        while live.status("/v1/models/watched:v3") != 200:
            assert time.monotonic() < deadline, "the server has not seen them"
            time.sleep(0.05)
        yield catalog
        catalog.unroute("watched")


async def replies(live: LiveServer, name: str) -> AsyncIterator[Reply]:
    """The answers of CLIENTS clients at once, as they come, until nobody asks for more."""
    texts = itertools.cycle(form.format(about) for form in FORMS for about in SUBJECTS)
    numbers = itertools.count()
    done: asyncio.Queue[Reply] = asyncio.Queue()
    async with live.async_client() as client:
        tasks = [
            asyncio.create_task(_one_client(client, done, texts, numbers, name))
            for _ in range(CLIENTS)
        ]
        try:
            while True:
                getting = asyncio.create_task(done.get())
                await asyncio.wait({getting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                failed = [task for task in tasks if task.done()]
                if failed:
                    failed[0].result()
                yield await getting
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _one_client(
    client: openai.AsyncOpenAI,
    done: asyncio.Queue[Reply],
    texts: Iterator[str],
    numbers: Iterator[int],
    name: str,
) -> None:
    while True:
        began = time.monotonic()
        raw = await client.chat.completions.with_raw_response.create(
            model="watched",
            messages=[{"role": "user", "content": next(texts)}],
            max_tokens=TOKENS,
            # The same requests are canaries in every run.
            extra_headers={"x-request-id": f"{name}-{next(numbers)}"},
            extra_body={"ignore_eos": True},
        )
        seconds = time.monotonic() - began
        role = raw.headers.get("x-adapterctl-route", "plain")
        await done.put(Reply(raw.headers["x-adapterctl-version"], role, seconds))


async def collect(live: LiveServer, name: str, requests: int) -> list[Reply]:
    """So many answers."""
    found: list[Reply] = []
    async for reply in replies(live, name):
        found.append(reply)
        if len(found) >= requests:
            return found
    raise AssertionError("the clients ended")


def rollbacks(catalog: Catalog) -> list[LaneChange]:
    return [change for change in catalog.lane_history("watched") if change.kind == "rollback"]


async def test_a_garbage_canary_is_taken_back_and_the_stable_version_never_slowed(
    live: LiveServer, store: Catalog
) -> None:
    before = await collect(live, "before", 24)
    assert {reply.version for reply in before} == {"watched:v1"}
    store.route("watched", splits=["v2=10%"], limits=Limits())
    during: list[Reply] = []
    async for reply in replies(live, "during"):
        during.append(reply)
        if rollbacks(store) or len(during) >= 800:
            break
    canary = [reply for reply in during if reply.version == "watched:v2"]
    stable = [reply.seconds for reply in during if reply.version == "watched:v1"]
    (change,) = rollbacks(store)
    ratio = median(stable) / median(reply.seconds for reply in before)
    sys.stdout.write(
        f"\n{change.reason}\ntaken back after {len(canary)} of its requests; the stable version's "
        f"median {median(stable):.2f} s, {ratio:.2f} of what it was ({len(stable)} answers)\n"
    )
    assert {reply.role for reply in canary} == {"canary"}
    assert len(canary) <= 50
    assert "against" in change.reason
    assert change.actor == "canary"
    # Two cores shared with everything else that runs: twice is far from what garbage would do if
    # it, or the scoring of it, stood in the way.
    assert ratio < 2
    after = await collect(live, "after", 8)
    assert {(reply.version, reply.role) for reply in after} == {("watched:v1", "plain")}


async def test_an_honest_canary_stays(live: LiveServer, store: Catalog) -> None:
    earlier = len(rollbacks(store))
    store.route("watched", splits=["v3=50%"], limits=Limits())
    found = await collect(live, "honest", 60)
    canary = [reply for reply in found if reply.role == "canary"]
    assert len(canary) >= 20
    assert {reply.version for reply in canary} == {"watched:v3"}
    assert len(rollbacks(store)) == earlier
    assert store.routes()[0].splits[0].number == 3
