"""Canaries: which are taken back, how soon, and which are left alone. Figures made by chance."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from adapters.errors import DiskFull, StoreBusy
from adapters.frozen import Lane
from adapters.lanes.models import Limits, Split
from adapters.registry.snapshot import Snapshot
from server.gateway.observing import Observation
from tests.server.gateway.watched import (
    CANARY,
    EMPTY,
    GOOD,
    STABLE,
    Watched,
    feed,
    route,
    snapshot_with,
)

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


async def test_a_failure_in_the_middle_of_an_answer_is_no_broken_number() -> None:
    watched = Watched()
    nan = b'{"error": {"message": "Out of range float values are not JSON compliant"}}'
    watched.canaries.observe(replace(CANARY, outcome="engine_error", answer=GOOD))
    watched.canaries.observe(replace(CANARY, outcome="engine_500", answer=nan))
    (status,) = watched.canaries.status(7).canaries
    assert (status.errors, status.read, status.degenerate_by) == (2, 1, {"not_finite": 1})


async def test_a_large_window_is_judged_as_well() -> None:
    watched = Watched(route(limits=Limits(window=2000, least=100)))
    taken = feed(watched, lambda: replace(CANARY, answer=EMPTY), requests=150)
    assert taken == 100
    await watched.canaries.close()


async def test_waiting_for_an_engines_start_is_not_slow() -> None:
    watched = Watched()
    assert feed(watched, lambda: replace(CANARY, waited=60.0), requests=80) is None


async def test_what_generates_nothing_has_no_speed() -> None:
    """A count of tokens takes no time, whoever is asked for it."""
    watched = Watched()
    for _ in range(60):
        watched.canaries.observe(
            replace(STABLE, completion_tokens=0, first_token=None, seconds=0.01)
        )
        watched.canaries.observe(
            replace(CANARY, completion_tokens=0, first_token=None, seconds=9.0)
        )
    assert not watched.withdrawn()


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
    (pirate,) = watched.registry.snapshot.adapters.values()
    moved = pirate.model_copy(update={"tags": {"latest": 3}})
    watched.registry.snapshot = Snapshot({}, {"pirate": moved}, 2)
    watched.canaries.observe(replace(STABLE, number=3))
    # One that began before that ends late.
    watched.canaries.observe(STABLE)
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
        watched.canaries.add_score(STABLE, 1.0 + (count % 5) / 5, salad=10.0)
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
        watched.canaries.add_score(STABLE, chance.gauss(0.4, 0.2), salad=10.0)
        watched.canaries.add_score(CANARY, chance.gauss(5.0, 0.8))
    assert not watched.withdrawn()
    stable = watched.canaries.status(7).stable
    assert stable is not None
    assert stable.scored == 50


async def test_a_version_that_takes_words_in_no_order_for_its_own_cannot_judge() -> None:
    watched = Watched()
    for _ in range(60):
        watched.canaries.observe(STABLE)
        watched.canaries.observe(CANARY)
        watched.canaries.add_score(STABLE, 8.0, salad=7.0)
        watched.canaries.add_score(CANARY, 30.0)
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


async def test_the_stable_versions_answers_are_read_seldom_once_there_are_enough() -> None:
    watched = Watched()
    for _ in range(50):
        watched.canaries.observe(STABLE)
    for _ in range(100):
        watched.canaries.observe(replace(STABLE, answer=EMPTY))
    stable = watched.canaries.status(7).stable
    assert stable is not None
    assert (stable.requests, stable.read, stable.degenerate) == (150, 50, 10)
