"""Canaries: which are taken back, how soon, and which are left alone. Figures made by chance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from adapters.errors import DiskFull, StoreBusy
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


BROKEN: dict[str, dict[str, Any]] = {
    "errors": {"outcome": "engine_500", "answer": None},
    "dead": {"outcome": "engine_died", "answer": None},
    "empty": {"answer": EMPTY},
    "slow to begin": {"first_token": 0.5, "seconds": 1.4},
    "slow per token": {"seconds": 5.0},
    "slow as a whole": {"first_token": None, "seconds": 5.0},
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_broken_canary_is_taken_back_at_once_with_the_figures(how: str) -> None:
    watched = Watched()
    stable = replace(STABLE, first_token=None) if how == "slow as a whole" else STABLE
    broken = replace(CANARY, **BROKEN[how])
    taken = feed(watched, lambda: broken, requests=60, stable=stable)
    assert taken is not None
    assert taken <= 15
    await watched.settled(lambda: bool(watched.registry.reasons))
    assert watched.registry.calls == [("pirate", "latest", 7, 2, None)]
    (reason,) = watched.registry.reasons
    assert "against" in reason
    assert any(character.isdigit() for character in reason)
    label = "slower" if "slow" in how else "degenerate" if how == "empty" else "errors"
    name = "adapterctl_canary_rollbacks_total"
    await watched.settled(lambda: watched.metric(name, adapter="pirate", reason=label) == 1)
    assert "taken back" in watched.canaries.status(7).canaries[0].verdict


async def test_the_reason_is_a_sentence_with_both_figures() -> None:
    watched = Watched()
    feed(watched, lambda: replace(CANARY, answer=EMPTY), requests=60)
    await watched.settled(lambda: bool(watched.registry.reasons))
    assert watched.registry.reasons == ["10 of 10 answers degenerate (empty) against 0 of 50"]


@pytest.mark.parametrize("share", [0.25, 0.5])
async def test_a_canary_that_fails_at_times_is_found_within_the_window(share: float) -> None:
    chance = random.Random(1)
    watched = Watched()

    def some() -> Observation:
        return replace(CANARY, outcome="engine_500") if chance.random() < share else CANARY

    taken = feed(watched, some, requests=120)
    assert taken is not None
    await watched.canaries.close()


async def test_a_canary_as_good_as_the_stable_version_is_left_alone() -> None:
    """Both fail, loop and are slow alike, often, for 1,500 requests of each canary, many times."""
    for seed in range(12):
        chance = random.Random(seed)

        def noisy(base: Observation, chance: random.Random = chance) -> Observation:
            first = chance.lognormvariate(-2, 1)
            changes: dict[str, Any] = {"first_token": first, "seconds": first + chance.random()}
            changes["answer"] = EMPTY if chance.random() < 0.2 else GOOD
            changes["outcome"] = "engine_500" if chance.random() < 0.15 else "ok"
            return replace(base, **changes)

        watched = Watched()
        for _ in range(1500 if seed < 2 else 200):
            watched.canaries.observe(noisy(STABLE))
            watched.canaries.observe(noisy(STABLE))
            watched.canaries.observe(noisy(CANARY))
        assert not watched.withdrawn(), watched.canaries.status(7)


@pytest.mark.parametrize(
    "outcome", ["client_gone", "engine_400", "engine_404", "invalid_request", "request_too_large"]
)
async def test_what_the_client_does_is_not_the_canarys_fault(outcome: str) -> None:
    watched = Watched()
    assert feed(watched, lambda: replace(CANARY, outcome=outcome), requests=80) is None
    assert watched.canaries.status(7).canaries == () or not watched.withdrawn()


async def test_waiting_for_an_engines_start_is_not_slow() -> None:
    watched = Watched()
    assert feed(watched, lambda: replace(CANARY, waited=60.0), requests=80) is None


async def test_few_requests_and_small_differences_do_not_condemn() -> None:
    watched = Watched()
    assert feed(watched, lambda: replace(CANARY, outcome="engine_500"), requests=9) is None
    slightly = Watched()
    a_bit = replace(CANARY, first_token=0.15, seconds=1.4)
    assert feed(slightly, lambda: a_bit, requests=100) is None


async def test_longer_or_shorter_answers_are_not_slower() -> None:
    """Answers that come as a whole: one takes longer, the other has more time per token."""
    shapes: list[dict[str, Any]] = [
        {"seconds": 4.0, "completion_tokens": 100},
        {"seconds": 0.4, "completion_tokens": 4},
    ]
    for changes in shapes:
        watched = Watched()
        for _ in range(50):
            watched.canaries.observe(replace(STABLE, first_token=None))
        for _ in range(80):
            watched.canaries.observe(replace(CANARY, first_token=None, **changes))
        assert not watched.withdrawn()


async def test_without_any_stable_request_a_broken_canary_is_still_taken_back() -> None:
    watched = Watched()
    for _ in range(12):
        watched.canaries.observe(replace(CANARY, answer=EMPTY))
    assert watched.withdrawn()
    await watched.settled(lambda: bool(watched.registry.reasons))
    assert "nothing to compare" in watched.registry.reasons[0]


async def test_without_a_stable_request_the_shared_engines_death_is_nobodys_fault() -> None:
    watched = Watched()
    for _ in range(40):
        watched.canaries.observe(replace(CANARY, outcome="engine_unavailable", answer=None))
    assert not watched.withdrawn()
    merged = Watched(route(splits=(Split(number=2, lane=Lane.MERGED, share=1),)))
    for _ in range(40):
        merged.canaries.observe(
            replace(CANARY, lane="merged", outcome="engine_unavailable", answer=None)
        )
    assert merged.canaries.withdrawn(7, 2, Lane.MERGED)
    await merged.canaries.close()


async def test_a_registry_that_cannot_be_written_is_tried_again_and_gets_no_traffic_meanwhile() -> (
    None
):
    watched = Watched(failures=[DiskFull("full"), StoreBusy("locked"), OSError(5, "eio")])
    feed(watched, lambda: replace(CANARY, outcome="engine_500"), requests=60)
    assert watched.withdrawn()
    await watched.settled(lambda: bool(watched.registry.reasons))
    assert len(watched.registry.calls) == 4
    assert watched.withdrawn()
    assert watched.metric("adapterctl_canary_rollback_failures_total", adapter="pirate") == 3


async def test_somebody_else_was_first() -> None:
    watched = Watched()
    watched.registry.answer = False
    feed(watched, lambda: replace(CANARY, outcome="engine_500"), requests=60)
    await watched.settled(lambda: bool(watched.registry.reasons))
    name = "adapterctl_canary_rollbacks_total"
    assert watched.metric(name, adapter="pirate", reason="errors") == 0


async def test_what_was_measured_under_another_route_does_not_count() -> None:
    watched = Watched()
    feed(watched, lambda: replace(CANARY, outcome="engine_500"), requests=9)
    watched.registry.snapshot = snapshot_with(route(id=8))
    for _ in range(9):
        watched.canaries.observe(replace(CANARY, route=8, outcome="engine_500"))
    assert not watched.canaries.withdrawn(8, 2, None)
    # A late one of the old route counts nowhere.
    watched.canaries.observe(replace(CANARY, outcome="engine_500"))
    assert watched.canaries.status(8).canaries[0].requests == 9
    assert watched.canaries.status(7).canaries == ()


async def test_nobody_watches_a_route_without_limits() -> None:
    watched = Watched(route(limits=None))
    assert feed(watched, lambda: replace(CANARY, outcome="engine_500"), requests=80) is None
    assert watched.canaries.status(7).stable is None


async def test_a_moved_tag_makes_a_new_stable_version() -> None:
    watched = Watched()
    for _ in range(20):
        watched.canaries.observe(STABLE)
    watched.canaries.observe(replace(STABLE, number=3))
    stable = watched.canaries.status(7).stable
    assert stable is not None
    assert (stable.number, stable.requests) == (3, 1)


async def test_an_answer_from_the_other_lane_tells_nothing_of_the_split() -> None:
    watched = Watched(route(splits=(Split(number=2, lane=Lane.MERGED, share=0.1),)))
    for _ in range(30):
        watched.canaries.observe(STABLE)
    for _ in range(30):
        watched.canaries.observe(replace(CANARY, outcome="engine_500"))
    assert not watched.canaries.withdrawn(7, 2, Lane.MERGED)
    assert watched.registry.calls == []


async def test_scores_condemn_what_the_stable_version_finds_absurd() -> None:
    watched = Watched()
    for count in range(1, 40):
        watched.canaries.observe(STABLE)
        watched.canaries.observe(CANARY)
        watched.canaries.add_score(STABLE, 1.0 + (count % 5) / 5)
        watched.canaries.add_score(CANARY, 9.0)
        if watched.withdrawn():
            break
    assert count <= 16
    await watched.settled(lambda: bool(watched.registry.reasons))
    assert (
        "10 of 10 scored answers degenerate against 0 of 10 (absurd: 9.0 nats"
        in watched.registry.reasons[0]
    )


async def test_scores_of_another_honest_fine_tune_do_not_condemn() -> None:
    chance = random.Random(3)
    watched = Watched()
    for _ in range(200):
        watched.canaries.observe(STABLE)
        watched.canaries.observe(CANARY)
        watched.canaries.add_score(STABLE, chance.gauss(1.0, 0.4))
        watched.canaries.add_score(CANARY, chance.gauss(2.8, 0.6))
    assert not watched.withdrawn()


async def test_the_status_has_the_figures() -> None:
    watched = Watched()
    for _ in range(4):
        watched.canaries.observe(STABLE)
        watched.canaries.observe(replace(CANARY, answer=EMPTY, first_token=0.3, seconds=2.2))
    status = watched.canaries.status(7)
    (canary,) = status.canaries
    assert status.stable is not None
    assert (status.stable.requests, status.stable.degenerate, status.stable.first_token) == (
        4,
        0,
        0.1,
    )
    assert (canary.degenerate, canary.degenerate_by) == (4, {"empty": 4})
    assert canary.per_token == pytest.approx(0.1)
    assert canary.verdict == "needs 6 more requests"
