"""A tenant cannot slow another beyond its share, whatever it tries: with real keys, over HTTP.

What is looked at is the order in which the engine is given requests, which is the same however
fast the machine is. The engine answers when it is told to, one request at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.gateway.admission.doors import BASE as AT_THE_BASE
from server.gateway.admission.doors import Doors
from server.gateway.admission.serving import limits_of
from tests.server.gateway.held import Held
from tests.server.gateway.isolation import BASE, House, house
from tests.server.gateway.scripted import ScriptedEngine

PLACES = 4
KEYS = ("acme web", "acme shop", "acme ci", "acme batch")
# Each body has so many bytes, of which the gateway takes four for a token, and each answer as many
# tokens as it may: all requests cost the same, and what is expected is what the engine counts.
BYTES, READ, WRITTEN = 400, 100, 4
NO_HEADERS: Mapping[str, str] = {}


def body(who: str, model: str, **more: Any) -> dict[str, Any]:
    """A request of `who`: the engine is told, in a field that means nothing."""
    made = {"model": model, "user": who, "max_tokens": WRITTEN, **more}
    missing = BYTES - len(json.dumps({**made, "messages": [{"role": "user", "content": ""}]}))
    return {**made, "messages": [{"role": "user", "content": "x" * missing}]}


@dataclass
class Shop:
    """The server, who asked it, and the engine that answers one by one."""

    house: House
    held: Held
    answered: int = 0
    asked: list[asyncio.Task[int]] = field(default_factory=list)

    @property
    def order(self) -> list[str]:
        """The tenants, in the order in which the engine was given their requests."""
        return [document["user"].partition(" ")[0] for document in self.house.engine.received]

    async def send(self, requests: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Send them at once; each of them is at the engine, or waits, or is refused afterwards."""
        for who, more in requests:
            self.asked.append(asyncio.create_task(self._one(who, **more)))
        await self._settled()

    async def ask(self, who: str, count: int = 1, **more: Any) -> None:
        """Send so many alike at once."""
        await self.send([(who, more)] * count)

    async def answer(self, count: int = 1) -> None:
        """Have the engine answer so many, and wait for what the gateway sends it instead."""
        for _ in range(count):
            self.held.answer()
            self.answered += 1
            await self._settled()

    async def answer_all(self) -> None:
        await self.answer(len(self.asked) - self.answered)
        assert {await one for one in self.asked} == {200}

    async def _one(
        self, who: str, *, model: str = BASE, headers: Mapping[str, str] = NO_HEADERS, **more: Any
    ) -> int:
        sent = body(who, model, **more)
        return (await self.house.ask(who, "POST", "/v1/chat/completions", sent, **headers))[0]

    async def _settled(self) -> None:
        async with asyncio.timeout(10):
            while not self._still():
                await asyncio.sleep(0.002)

    def _still(self) -> bool:
        queue = self.house.parts.state.lanes.doors.states().get(AT_THE_BASE)
        if queue is None:
            return False
        there = self.answered + queue.in_flight
        known = there + queue.queued + sum(queue.refused.values()) == len(self.asked)
        return known and len(self.house.engine.received) == there


@pytest.fixture
async def opened(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:

        async def opened(*, slots: int | None = None, **settings: Any) -> Shop:
            settings = {"max_in_flight": PLACES, "prefill_tokens": 1000, **settings}
            made = await stack.enter_async_context(house(tmp_path, engine, **settings))
            # An engine that somebody else started does not say how many it has.
            doors = Doors(limits_of(made.parts.state.settings), slots=lambda: slots)
            made.parts.state.lanes.doors = doors
            for who in (*KEYS, "beta app"):
                made.key(who, ["infer"])
            shop = Shop(made, Held(engine, read=READ, written=WRITTEN))
            stack.push_async_callback(_gone, shop.asked)
            return shop

        yield opened


async def _gone(tasks: list[asyncio.Task[int]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def passed(order: Sequence[str]) -> list[int]:
    """For each request of beta: how many of acme's the engine was given before it."""
    found, before = [], 0
    for tenant in order:
        if tenant == "beta":
            found.append(before)
        else:
            before += 1
    return found


# What one tenant may try to get more than its share; many requests at once, each time.
WAYS: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "one key": lambda k: (KEYS[0], {}),
    "several keys": lambda k: (KEYS[k % len(KEYS)], {}),
    "several adapters": lambda k: (KEYS[0], {"model": f"acme-{k % 3}"}),
    "priorities": lambda k: (
        KEYS[0],
        {"priority": -1000, "headers": {"x-vllm-priority": "-1000"}},
    ),
    "other tenants' names": lambda k: (
        KEYS[0],
        {"headers": dict.fromkeys(("x-tenant", "x-adapterctl-tenant"), f"other-{k}")},
    ),
    "the other tenant's name": lambda k: (KEYS[0], {"headers": {"x-tenant": "beta"}}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_flood_is_passed_by_whoever_else_asks(opened: Any, way: str) -> None:
    shop = await opened()
    for k in range(3):
        shop.house.register(f"acme-{k}", k)
    await shop.send(WAYS[way](k) for k in range(20))
    assert shop.order == ["acme"] * PLACES
    await shop.ask("beta app", 6)
    # The first at once, above the limit.
    assert shop.order[PLACES:] == ["beta"]
    await shop.send(WAYS[way](k) for k in range(20, 24))
    await shop.answer_all()
    # From then on they take turns, as long as both wait.
    assert passed(shop.order[PLACES:]) == [0, 1, 2, 3, 4, 5]
    # The engine has priorities as well, and orders by those whatever comes to it.
    assert {headers["x-vllm-priority"] for headers in shop.house.engine.headers} == {"0"}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"beta": 3}, [0, 1, 1, 1, 2, 2]), ({"acme": 3}, [0, 3, 6, 9, 12, 15])],
)
async def test_weights_hold_whatever_the_number_of_keys(
    opened: Any, weights: dict[str, float], expected: list[int]
) -> None:
    shop = await opened(tenant_weights=weights)
    await shop.send((KEYS[k % len(KEYS)], {}) for k in range(30))
    await shop.ask("beta app", 6)
    await shop.answer_all()
    assert passed(shop.order[PLACES:]) == expected


async def test_a_flood_in_every_slot_leaves_one_at_once(opened: Any) -> None:
    shop = await opened(slots=2, slot_patience=600)
    for k in range(3):
        shop.house.register(f"acme-{k}", k)
    shop.house.register("beta-bot", 3)
    await shop.send((KEYS[0], {"model": f"acme-{k % 3}"}) for k in range(20))
    at_the_engine = len(shop.order)
    await shop.ask("beta app", 4, model="beta-bot")
    await shop.answer_all()
    # One slot gets nothing further: what is in it ends, while the other one goes on meanwhile.
    # Patience, which is for those who have their share, is longer than this test.
    waited = passed(shop.order[at_the_engine:])
    assert all(before <= PLACES + k for k, before in enumerate(waited)), waited


async def test_answers_by_the_dozen_take_no_more_places_than_the_share(opened: Any) -> None:
    shop = await opened()
    await shop.ask("beta app")
    await shop.ask(KEYS[0], 6, n=64)
    assert shop.order == ["beta", "acme"]
    await shop.ask("beta app", 3)
    await shop.answer_all()
    assert passed(shop.order[2:]) == [0, 0, 1]


async def test_prompts_of_all_keys_are_read_one_after_the_other(opened: Any) -> None:
    shop = await opened(prefill_tokens=READ)
    await shop.send((key, {"stream": True}) for key in KEYS)
    assert shop.order == ["acme"]
    await shop.ask("beta app", stream=True)
    assert shop.order == ["acme", "beta"]


async def test_keys_of_one_tenant_share_its_part_of_the_queue(opened: Any) -> None:
    shop = await opened(queue_limit=8, queue_limit_per_tenant=6)
    await shop.send((KEYS[k % len(KEYS)], {}) for k in range(20))
    await shop.ask("beta app", 2)
    await shop.answer(PLACES + 8)
    statuses = [await one for one in shop.asked]
    assert Counter(statuses[:20]) == {200: PLACES + 6, 429: 20 - PLACES - 6}
    assert statuses[20:] == [200, 200]
