"""A watched route of its own registry, and requests that end under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import CollectorRegistry

from adapters.frozen import Lane
from adapters.lanes.models import Limits, Route, Split
from adapters.models import AdapterRecord
from adapters.registry.snapshot import Snapshot
from server.gateway.canary import Canaries
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.metrics import GatewayMetrics
from server.gateway.observing import Observation, Role
from tests.server.gateway.scripted import NOW, PIRATE, PIRATE_2, base_record, version_record

GOOD = b'{"choices": [{"message": {"content": "Arr, matey!"}, "finish_reason": "stop"}]}'
EMPTY = b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'


def route(**changes: Any) -> Route:
    return Route(
        id=7,
        adapter="pirate",
        tag="latest",
        splits=(Split(number=2, share=0.1),),
        limits=Limits(),
        at=NOW,
        actor="test",
    ).model_copy(update=changes)


def snapshot_with(*routes: Route) -> Snapshot:
    pirate = AdapterRecord(
        name="pirate",
        default_tag="latest",
        versions={1: version_record("pirate", 1, PIRATE), 2: version_record("pirate", 2, PIRATE_2)},
        tags={"latest": 1},
        routes={one.tag: one for one in routes},
    )
    return Snapshot({"tiny": base_record()}, {"pirate": pirate}, 1)


@dataclass
class Registry:
    """A registry that can be written after `failures` attempts."""

    snapshot: Snapshot
    failures: list[Exception] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    answer: bool = True

    def roll_back(
        self, adapter: str, tag: str, route_id: int, number: int, lane: Lane | None, *, reason: str
    ) -> bool:
        self.calls.append((adapter, tag, route_id, number, lane))
        if self.failures:
            raise self.failures.pop(0)
        self.reasons.append(reason)
        return self.answer


class Watched:
    """Canaries on a registry of the tests' own, and what is seen of them."""

    def __init__(self, *routes: Route, failures: list[Exception] | None = None) -> None:
        self.registry = Registry(snapshot_with(*(routes or (route(),))), failures or [])
        self.metrics = GatewayMetrics(CollectorRegistry(), adapters=10)
        self.canaries = Canaries(
            lambda: self.registry.snapshot,
            self.registry.roll_back,
            CanaryMetrics(self.metrics),
            first_retry=0.01,
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def withdrawn(self) -> bool:
        return self.canaries.withdrawn(7, 2, None)

    async def settled(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.005)


def seen(role: Role, **changes: Any) -> Observation:
    return replace(
        Observation(
            adapter="pirate",
            number=1 if role is Role.STABLE else 2,
            lane="hot",
            role=role,
            route=7,
            path="/v1/chat/completions",
            outcome="ok",
            ended=0.0,
            waited=0.0,
            first_token=0.1,
            seconds=1.0,
            prompt_tokens=10,
            completion_tokens=20,
            answer=GOOD,
        ),
        **changes,
    )


STABLE = seen(Role.STABLE)
CANARY = seen(Role.CANARY)


def feed(
    watched: Watched,
    canary: Callable[[], Observation],
    *,
    requests: int,
    stable: Observation = STABLE,
) -> int | None:
    """Nine stable requests for every one of the canary; how many it had when it was taken back."""
    for count in range(1, requests + 1):
        for _ in range(9):
            watched.canaries.observe(stable)
        watched.canaries.observe(canary())
        if watched.withdrawn():
            return count
    return None
