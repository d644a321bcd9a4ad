"""The rules of advice: what they say, at which threshold, and what they do not make up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.frozen import Lane
from server.gateway.advice import (
    UNKNOWN,
    Candidate,
    Seen,
    Surroundings,
    Thresholds,
    advise,
    percent,
)
from server.gateway.traffic import Figures

FIGURES = Figures(
    seconds=900.0,
    requests=400,
    prompt_tokens=40_000,
    completion_tokens=20_000,
    first_token_p50=0.3,
    per_token_p50=0.05,
)
AWQ = Candidate("sha256:a", "awq", speeds={1: 40.0, 8: 160.0}, memory_bytes=1_300_000_000)
HOT = Seen("support", 4, Lane.HOT, FIGURES, token_share=0.4, candidates=(AWQ,))
MERGED = replace(HOT, lane=Lane.MERGED, candidates=(), memory_bytes=900_000_000, quiet=5.0)
AROUND = Surroundings(
    uptime=86_400.0,
    slots=8,
    slots_used=8,
    engine_seconds=7200.0,
    load_seconds=0.4,
    evictions=20,
    at_once=1.0,
    free_bytes=4_000_000_000,
)


def kinds(*seen: Seen, around: Surroundings = AROUND) -> list[str]:
    return [advice.kind for advice in advise(seen, around)]


def test_a_version_with_much_of_the_traffic_gains_from_an_engine_of_its_own() -> None:
    (advice,) = advise([HOT], AROUND)
    assert (advice.kind, advice.now, advice.lane) == ("merge", Lane.HOT, Lane.MERGED)
    assert advice.expected_speed == pytest.approx(2.0)
    assert advice.reason == (
        "support:v4 has 40 % of all tokens (400 requests in 15 minutes) and 8 of 8 slots are in "
        "use; an engine of its own takes 1.3 GB, 4.0 GB are free"
    )
    assert advice.gain == "2.0 times the speed: 50 ms a token now, 25 ms in its quality report"
    assert advice.command == "adapterctl deploy support:v4 --lane merged --requantize awq"


@pytest.mark.parametrize(
    ("seen", "around"),
    [
        (replace(HOT, token_share=0.19), AROUND),
        (replace(HOT, figures=replace(FIGURES, requests=49)), AROUND),
        # 28 ms now, 25 ms there: not worth it.
        (replace(HOT, figures=replace(FIGURES, per_token_p50=0.028)), AROUND),
        # Faster alone, but not among as many as the base's engine has at once.
        (HOT, replace(AROUND, at_once=7.0)),
        (HOT, replace(AROUND, free_bytes=1_000_000_000)),
        (replace(HOT, candidates=()), AROUND),
        (replace(HOT, figures=replace(FIGURES, per_token_p50=None)), AROUND),
    ],
)
def test_what_would_not_pay_is_not_advised(seen: Seen, around: Surroundings) -> None:
    assert kinds(seen, around=around) == []


def test_where_nothing_was_measured_it_says_so() -> None:
    most = replace(HOT, candidates=(), token_share=0.6)
    (advice,) = advise([most], AROUND)
    assert advice.gain == UNKNOWN
    assert advice.expected_speed is None
    assert f"takes memory ({UNKNOWN})" in advice.reason
    assert advice.command == "adapterctl deploy support:v4 --lane merged"


def test_merged_engines_that_run_here_tell_more_than_nothing() -> None:
    (advice,) = advise([replace(HOT, candidates=())], replace(AROUND, merged_per_token=0.02))
    assert advice.gain == (
        "2.5 times the speed: 50 ms a token now, 20 ms on the merged engines that run here"
    )


def test_the_fastest_model_that_fits_is_named() -> None:
    large = Candidate("sha256:b", "none", {1: 80.0}, memory_bytes=8_000_000_000)
    slow = Candidate("sha256:c", "gptq", {1: 30.0}, memory_bytes=1_000_000_000)
    (advice,) = advise([replace(HOT, candidates=(large, slow, AWQ))], AROUND)
    assert "--requantize awq" in advice.command
    (roomy,) = advise(
        [replace(HOT, candidates=(large, slow, AWQ))], replace(AROUND, free_bytes=None)
    )
    assert roomy.command == "adapterctl deploy support:v4 --lane merged"
    assert f"what is free is {UNKNOWN}" in roomy.reason


def test_a_merged_version_that_nobody_asks_for_goes_back() -> None:
    (advice,) = advise([replace(MERGED, quiet=1800.0)], AROUND)
    assert (advice.kind, advice.lane) == ("return", Lane.HOT)
    assert advice.reason.startswith("support:v4 has had no request for 30 minutes")
    assert advice.gain.startswith("0.9 GB of memory")
    assert advice.command == "adapterctl deploy support:v4 --lane hot"


def test_so_does_one_with_hardly_any_traffic() -> None:
    (advice,) = advise([replace(MERGED, token_share=0.004, memory_bytes=None)], AROUND)
    assert "0.4 % of all tokens" in advice.reason
    assert UNKNOWN in advice.gain


@pytest.mark.parametrize(
    ("seen", "around"),
    [
        (MERGED, AROUND),
        (replace(MERGED, quiet=1800.0, hot_capable=False), AROUND),
        (replace(MERGED, quiet=1800.0, pinned=True), AROUND),
        # Just started, it has seen nobody yet.
        (replace(MERGED, quiet=None, token_share=0.0), replace(AROUND, uptime=60.0)),
    ],
)
def test_merged_versions_that_stay(seen: Seen, around: Surroundings) -> None:
    assert kinds(seen, around=around) == []


SMALL = replace(HOT, token_share=0.05, candidates=(), loads=7)


def test_what_is_read_from_disk_again_and_again_is_worth_a_pin() -> None:
    (advice,) = advise([SMALL], AROUND)
    assert advice.kind == "pin"
    assert advice.now is advice.lane is Lane.HOT
    assert advice.reason.startswith(
        "support:v4 was read from disk 7 times since the engine's start 2.0 hours ago"
    )
    assert advice.gain == "1.2 s of waiting an hour"
    assert advice.command == "adapterctl pin support:v4"


@pytest.mark.parametrize(
    ("seen", "around"),
    [
        (replace(SMALL, loads=4), AROUND),
        (replace(SMALL, pinned=True), AROUND),
        (replace(SMALL, figures=replace(FIGURES, requests=9)), AROUND),
        (SMALL, replace(AROUND, evictions=0)),
        # All slots but one are pinned.
        (SMALL, replace(AROUND, pins=7)),
        # An engine that does not say what it holds.
        (SMALL, replace(AROUND, slots=None)),
    ],
)
def test_pins_that_are_not_worth_it(seen: Seen, around: Surroundings) -> None:
    assert kinds(seen, around=around) == []


def test_a_pin_that_nobody_uses_is_given_back_when_slots_are_short() -> None:
    idle = replace(SMALL, pinned=True, loads=1, figures=Figures(900.0), token_share=0.0, quiet=None)
    (advice,) = advise([idle], AROUND)
    assert advice.kind == "unpin"
    assert "no request for 1440 minutes, while 8 of 8 slots are in use" in advice.reason
    assert kinds(idle, around=replace(AROUND, slots_used=7)) == []
    assert kinds(idle, around=replace(AROUND, uptime=60.0)) == []


def test_the_largest_share_comes_first() -> None:
    second = replace(HOT, adapter="pirate", token_share=0.3)
    assert [one.adapter for one in advise([second, HOT], AROUND)] == ["support", "pirate"]


def test_thresholds_are_what_decides() -> None:
    small = replace(HOT, token_share=0.1)
    assert advise([small], AROUND) == []
    assert len(advise([small], AROUND, Thresholds(share=0.1))) == 1


def test_the_batch_nearest_to_what_runs_at_once_is_compared() -> None:
    assert AWQ.per_token(1.0) == 1 / 40
    assert AWQ.per_token(0.0) == 1 / 40
    assert AWQ.per_token(5.0) == 8 / 160
    assert Candidate("sha256:d", "none").per_token(1.0) is None


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.34, "34 %"), (0.004, "0.4 %"), (0.01, "1 %"), (0.0, "0.0 %"), (1, "100 %")],
)
def test_shares_in_words(share: float, text: str) -> None:
    assert percent(share) == text


SEENS = st.builds(
    Seen,
    adapter=st.just("a"),
    number=st.integers(1, 3),
    lane=st.sampled_from(Lane),
    figures=st.builds(
        Figures,
        seconds=st.just(900.0),
        requests=st.integers(0, 500),
        per_token_p50=st.none() | st.floats(0.001, 1),
    ),
    token_share=st.floats(0, 1),
    hot_capable=st.booleans(),
    pinned=st.booleans(),
    candidates=st.sampled_from([(), (AWQ,), (Candidate("sha256:e", "none"),)]),
    memory_bytes=st.none() | st.integers(0, 10**10),
    quiet=st.none() | st.floats(0, 1e5),
    loads=st.integers(0, 50),
)
AROUNDS = st.builds(
    Surroundings,
    uptime=st.floats(0, 1e6),
    slots=st.none() | st.integers(1, 8),
    slots_used=st.integers(0, 8),
    pins=st.integers(0, 8),
    engine_seconds=st.floats(0, 1e6),
    load_seconds=st.none() | st.floats(0, 10),
    evictions=st.integers(0, 10),
    at_once=st.floats(0, 64),
    free_bytes=st.none() | st.integers(0, 10**10),
    merged_per_token=st.none() | st.floats(0.001, 1),
)


@given(SEENS, AROUNDS)
def test_one_version_is_told_one_thing_and_never_what_it_already_does(
    seen: Seen, around: Surroundings
) -> None:
    found = advise([seen], around)
    assert len(found) <= 2
    for advice in found:
        assert advice.now is seen.lane
        assert (advice.lane is not advice.now) == (advice.kind in ("merge", "return"))
        assert advice.kind != "pin" or not seen.pinned
        assert advice.kind != "return" or seen.hot_capable
        assert advice.expected_speed is None or advice.expected_speed >= 1.2
        assert advice.kind != "merge" or (advice.expected_speed is None) == (advice.gain == UNKNOWN)
