"""The plan: the same from run to run, with the shares that were asked for."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from loadtests.load.plan import Item, TenantPlan
from loadtests.scenarios import parse

MODELS = tuple(f"m{i}" for i in range(20))
MANY = 4000


def plan(pick: dict[str, Any], **more: Any) -> TenantPlan:
    load = more.pop("load", {"kind": "closed", "users": 1})
    table = {"adapters": pick, "load": load, "duration": 9, **more}
    scenario = parse("mine", {k: v for k, v in table.items() if v is not None})
    return TenantPlan(scenario, scenario.askers[0], MODELS, "base")


def counts(found: TenantPlan) -> Counter[str]:
    return Counter(found.item(i).model for i in range(MANY))


def test_it_depends_on_the_seed_alone() -> None:
    sizes = {"prompt_tokens": {"low": 1, "high": 99}, "output_tokens": {"low": 5, "high": 6}}
    one, two = (plan({"pick": "uniform", "count": 8}, **sizes) for _ in range(2))
    items = [one.item(i) for i in range(200)]
    assert items == [two.item(i) for i in reversed(range(200))][::-1]
    other = plan({"pick": "uniform", "count": 8}, seed=1, **sizes)
    assert items != [other.item(i) for i in range(200)]
    assert {i.prompt_tokens for i in items} <= set(range(1, 100))
    assert {i.output_tokens for i in items} == {5, 6}
    assert len({i.prompt_tokens for i in items}) > 50


def test_how_adapters_are_chosen() -> None:
    uniform = counts(plan({"pick": "uniform", "count": 8}))
    assert set(uniform) == set(MODELS[:8])
    assert max(uniform.values()) < 1.3 * MANY / 8
    zipf = counts(plan({"pick": "zipf"}))
    harmonic = sum(1 / k for k in range(1, 21))
    for rank in range(1, 6):
        assert zipf[f"m{rank - 1}"] == pytest.approx(MANY / rank / harmonic, rel=0.25)
    hot = counts(plan({"pick": "one-hot", "count": 5, "share": 0.8}))
    assert hot["m0"] == pytest.approx(0.8 * MANY, rel=0.05)
    assert set(hot) == set(MODELS[:5])
    shares = counts(plan({"pick": "shares", "shares": [0.9, 0.1]}))
    assert set(shares) == {"m0", "m1"}
    assert shares["m1"] == pytest.approx(0.1 * MANY, rel=0.2)
    turn = plan({"pick": "in-turn", "count": 3})
    assert [turn.item(i).model for i in range(7)] == ["m0", "m1", "m2"] * 2 + ["m0"]
    assert counts(plan({"pick": "base"})) == {"base": MANY}


def test_cold_adapters_are_asked_first_and_again_and_never_warmed() -> None:
    cold = plan(
        {"pick": "cold", "count": 3, "again": 1}, duration=None, requests=6, warmup_requests=2
    )
    assert [cold.item(i).model for i in range(8)] == [
        *("base", "base"),
        *("m0", "m0", "m1", "m1", "m2", "m2"),
    ]


def test_lengths_do_not_depend_on_the_choice() -> None:
    """So that a run over sixteen adapters asks as much as one over eight."""
    sizes = {"prompt_tokens": {"low": 1, "high": 99}}

    def lengths(pick: dict[str, Any]) -> list[int]:
        found: list[Item] = [plan(pick, **sizes).item(i) for i in range(50)]
        return [item.prompt_tokens for item in found]

    assert lengths({"pick": "uniform", "count": 8}) == lengths({"pick": "in-turn", "count": 16})


def test_arrivals_have_their_rate() -> None:
    load = {"kind": "rate", "rate": 4.0}
    poisson = list(itertools.islice(plan({"pick": "uniform"}, load=load).arrivals(), MANY))
    assert poisson[-1] == pytest.approx(MANY / 4, rel=0.1)
    gaps = [b - a for a, b in itertools.pairwise(poisson)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1), "exponential gaps deviate by their mean"
    even = plan({"pick": "uniform"}, load={**load, "spacing": "even"}).arrivals()
    assert list(itertools.islice(even, 4)) == [0, 0.25, 0.5, 0.75]
