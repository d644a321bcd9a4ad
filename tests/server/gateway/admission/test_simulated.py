"""Admission in front of a simulated engine: the bounds that docs/scheduling.md states."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.gateway.admission.limits import Limits
from server.gateway.admission.scheduler import Scheduler
from tests.server.gateway.admission.simulated import Answer, Asks, Simulation

ADAPTERS = [f"a{number}" for number in range(40)]


def simulation(slots: int | None = 8, **limits: float) -> Simulation:
    return Simulation(Scheduler(Limits(**limits), slots=slots))  # type: ignore[arg-type]


def asking(seed: int, adapters: Sequence[str | None], prompt: int = 64, written: int = 32) -> Asks:
    chance = random.Random(seed)
    while True:
        yield chance.choice(adapters), prompt, written


def first_tokens(answers: Sequence[Answer]) -> list[float]:
    return [one.first - one.asked for one in answers if one.first is not None]


def test_twice_as_many_adapters_as_slots_are_nearly_as_fast() -> None:
    """The bar of the real engine is the same: 2.0 times, 0.8 of the tokens."""
    medians, tokens = {}, {}
    for count in (8, 16):
        sim = simulation()
        for seed in range(16):
            sim.user("one", asking(seed, ADAPTERS[:count]))
        sim.run(120)
        medians[count] = median(first_tokens(sim.of("one", since=10)))
        tokens[count] = sim.tokens(10)["one"]
    assert medians[16] <= 1.5 * medians[8]
    assert tokens[16] >= 0.8 * tokens[8]


@pytest.mark.parametrize("own", [None, "a0"])
@pytest.mark.parametrize("flooded", [1, 16])
def test_a_flood_does_not_keep_another_tenant_waiting(own: str | None, flooded: int) -> None:
    sim = simulation()
    sim.user("quiet", itertools.repeat((own, 64, 8)), think=0.5)
    for seed in range(50):
        sim.user("flood", asking(seed, ADAPTERS[1 : 1 + flooded]), begin=30)
    sim.run(90)
    idle = median(first_tokens([one for one in sim.of("quiet") if one.asked < 29]))
    busy = first_tokens(sim.of("quiet", since=35))
    assert median(busy) <= 2.0 * idle
    assert max(busy) <= 8 * idle
    # What it does not take is not wasted: the flood is served as if it were nearly alone.
    alone = simulation()
    for seed in range(50):
        alone.user("flood", asking(seed, ADAPTERS[1 : 1 + flooded]))
    alone.run(55)
    assert sim.tokens(35)["flood"] >= 0.7 * alone.tokens(0)["flood"]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_backlogged_tenants_get_service_by_their_weights(weight: float) -> None:
    """Long prompts on one side, long answers on the other; places are not what is shared out."""
    sim = simulation()
    for seed in range(30):
        sim.user("reads", asking(seed, [None], 400, 16))
        sim.user("writes", asking(seed, ADAPTERS[:4], 16, 100), weight=weight)
    sim.run(150)
    total = {one.name: one.total for one in sim.core.accounts.known()}
    assert total["writes"] / total["reads"] == pytest.approx(weight, rel=0.2)


def test_who_was_idle_has_saved_nothing_up() -> None:
    """After a long time alone, a tenant and one that comes then share alike from there on."""
    sim = simulation()
    for seed in range(30):
        sim.user("first", asking(seed, [None]))
        sim.user("second", asking(seed, [None]), begin=60)
    sim.run(120)
    since = sim.tokens(70)
    assert since["second"] / since["first"] == pytest.approx(1.0, rel=0.15)


def test_adapters_of_one_tenant_share_alike() -> None:
    """Nine of ten requests are for one adapter: the others do not wait behind them."""
    sim = simulation(places=8)
    for seed in range(27):
        sim.user("one", asking(seed, ["a0"]))
    for seed in range(3):
        sim.user("one", asking(seed, ["a1"]))
    sim.run(90)
    rare = [one for one in sim.of("one", since=10) if one.ticket.adapter == "a1"]
    hot = [one for one in sim.of("one", since=10) if one.ticket.adapter == "a0"]
    assert median(first_tokens(rare)) < 0.3 * median(first_tokens(hot))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    users=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 11), st.sampled_from([0.5, 1.0, 4.0])),
        min_size=1,
        max_size=40,
    ),
    slots=st.integers(1, 6),
    places=st.integers(1, 12),
    patience=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_nobody_waits_longer_than_the_bound(
    seed: int, users: list[tuple[str, int, float]], slots: int, places: int, patience: float
) -> None:
    """Requests of equal cost: each is admitted within 2 · T · A · k · W · (patience + R) seconds.

    T: tenants; A: adapters of its own; k: users of its tenant with its adapter, each with one
    request at a time; W: largest weight over smallest; R: the longest time at the engine.
    """
    sim = simulation(slots, places=places, patience=patience)
    weights: dict[str, float] = {}
    for tenant, adapter, given_weight in users:
        weight = weights.setdefault(tenant, given_weight)
        sim.user(tenant, itertools.repeat((ADAPTERS[adapter], 20, 10)), weight=weight)
    sim.run(30)
    longest = max(
        (one.ended - one.ticket.admitted for one in sim.answers if one.ended is not None),
        default=1.0,
    )
    ratio = max(weights.values()) / min(weights.values())
    flows = Counter((tenant, ADAPTERS[adapter]) for tenant, adapter, _ in users)
    for one in sim.answers:
        ticket = one.ticket
        assert ticket.adapter is not None
        own = sum(name == ticket.tenant for name, _ in flows)
        ahead = flows[ticket.tenant, ticket.adapter]
        bound = 2 * len(weights) * own * ahead * ratio * (patience + longest)
        until = one.ticket.admitted if one.first is not None else sim.now
        assert until - one.asked <= bound
