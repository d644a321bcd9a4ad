"""Scenarios from files: everything wrong is one line that says where."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import UsageError
from loadtests import scenarios
from loadtests.scenarios import Closed, Cold, Rate, Scenario, changed, parse

GOOD: dict[str, Any] = {"load": {"kind": "closed", "users": 2}, "duration": 5}


def fault(table: object) -> str:
    with pytest.raises(UsageError) as raised:
        parse("mine", table)
    assert "\n" not in raised.value.message
    return raised.value.message


def test_what_ships_is_what_the_issue_names() -> None:
    shipped = scenarios.load_scenarios()
    assert list(shipped) == [
        "uniform",
        "zipf",
        "one-hot",
        "over-slots",
        "cold",
        "noisy-neighbour",
        "canary",
        "long-prompts",
    ]
    assert all(scenario.about for scenario in shipped.values())


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({**GOOD, "durtion": 3}, "scenario mine: durtion: there is no such key"),
        ({**GOOD, "adapters": {"pick": "zipf", "share": 1}}, "adapters.zipf.share: there is no"),
        ({**GOOD, "adapters": {"pick": "warm"}}, "adapters:"),
        ({"duration": 5}, "exactly one of load and tenants"),
        ({**GOOD, "requests": 5}, "exactly one of duration and requests"),
        ({**GOOD, "warmup_requests": 5}, "warmup_requests goes with requests"),
        ({**GOOD, "duration": None, "requests": 5, "warmup": 1}, "warmup (seconds) goes with"),
        ({**GOOD, "duration": 0}, "duration has to be above 0"),
        ({**GOOD, "prompt_tokens": {"low": 9, "high": 2}}, "low is 9, above high"),
        ({**GOOD, "adapters": {"pick": "shares", "shares": [0.5, 0.4]}}, "add up to 0.9"),
        ({**GOOD, "load": {"kind": "rate", "rate": 0}}, "load.rate.rate: Input should be greater"),
        ({**GOOD, "name": "other"}, "take the key name out"),
        ("text", "a scenario is a table"),
        (
            {"duration": 5, "tenants": [{"name": "a", "begin": 5, "load": GOOD["load"]}]},
            "tenant a begins after the end",
        ),
        (
            {"duration": 5, "tenants": [{"name": "a", "load": GOOD["load"]}] * 2},
            "two tenants have one name",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(table: object, told: str) -> None:
    assert told in fault(table)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        scenarios.load_scenarios(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("[a\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        scenarios.load_scenarios(tmp_path / "broken.toml")
    with pytest.raises(UsageError, match="there are uniform, zipf"):
        scenarios.find("unifrom")


# The machine of the tests may be busy; that says nothing of the strategy.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*Scenario.model_fields, "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(
                    st.sampled_from(["pick", "kind", "users", "low"]), inner, max_size=2
                )
            ),
            max_leaves=4,
        ),
        max_size=5,
    )
)
def test_any_table_is_a_scenario_or_one_line(table: dict[str, Any]) -> None:
    try:
        assert isinstance(parse("mine", table), Scenario)
    except UsageError as error:
        assert "\n" not in error.message
        assert error.message


@given(
    st.sampled_from(list(scenarios.load_scenarios().values())),
    st.floats(0.1, 1000),
    st.integers(1, 500),
    st.integers(0, 99),
)
def test_changes_are_checked_and_read_back(
    scenario: Scenario, duration: float, users: int, seed: int
) -> None:
    if scenario.tenants:
        with pytest.raises(UsageError, match="has tenants"):
            changed(scenario, users=users)
        return
    new = changed(scenario, duration=duration, users=users, seed=seed)
    assert (new.duration, new.seed, new.requests) == (duration, seed, None)
    assert new.load is not None
    assert new.load.users == users
    assert Scenario.model_validate_json(new.model_dump_json()) == new


def test_changing_how_many_there_are() -> None:
    assert changed(scenarios.find("zipf"), adapters=1000).adapters_needed == 1000
    cold = changed(scenarios.find("cold"), adapters=3)
    assert isinstance(cold.adapters, Cold)
    assert (cold.adapters_needed, cold.requests) == (3, 6)
    assert changed(scenarios.find("canary"), adapters=1).adapters_needed == 1
    with pytest.raises(UsageError, match="not to be changed"):
        changed(scenarios.find("canary"), adapters=3)
    rate = changed(scenarios.find("canary"), rate=7.5, users=3).load
    assert isinstance(rate, Rate)
    assert (rate.rate, rate.most) == (7.5, 3)
    with pytest.raises(UsageError, match="rate: there is no such key"):
        changed(scenarios.find("uniform"), rate=3)


def test_a_scenario_with_a_load_has_one_tenant() -> None:
    table = tomllib.loads('load = { kind = "closed", users = 3 }\nrequests = 4\n')
    (only,) = parse("mine", table).askers
    assert (only.name, only.load) == ("default", Closed(users=3))
