"""The books of a soak: what a fault explains, and what a process took over its longest life."""

from __future__ import annotations

import time

import pytest

from loadtests.soaking import ledger
from loadtests.soaking.faults import KINDS
from loadtests.soaking.ledger import CUT, OK, SLACK, WRONG, Fault, Ledger, Outcome
from loadtests.soaking.sampling import WARM, Sample, growth

MIB = 1 << 20


def books(*outcomes: Outcome, over: float | None = 20.0) -> Ledger:
    fault = Fault("server killed", 10.0, frozenset({CUT}), over)
    return Ledger(time.monotonic() - 100, list(outcomes), [fault])


@pytest.mark.parametrize(
    ("result", "began", "ended", "explained"),
    [
        (OK, 0, 1, True),
        (CUT, 0, 9.9, False),  # it failed before the fault
        (CUT, 0, 10, True),
        (CUT, 15, 60, True),  # it began during it, and failed later
        (CUT, 20 + SLACK, 60, True),
        (CUT, 20.1 + SLACK, 60, False),
        (WRONG, 12, 13, False),  # no fault excuses another's answer
    ],
)
def test_only_what_a_fault_may_do_while_it_lasts_is_explained(
    result: str, began: float, ended: float, explained: bool
) -> None:
    kept = books(Outcome("stream", result, began, ended))
    assert kept.unexplained() == ([] if explained else kept.outcomes)
    summary = kept.summary()
    assert summary["unexplained"] == (0 if explained else 1)
    failures = {} if result == OK or not explained else {"server killed": {CUT: 1}}
    assert summary["failures_by_fault"] == failures


def test_a_fault_that_lasts_explains_until_now() -> None:
    kept = books(Outcome("stream", CUT, 11, 12), over=None)
    assert kept.unexplained() == []


def test_what_went_wrong_in_a_fault_is_a_problem() -> None:
    kept = books()
    kept.faults[0].problem = "no answer"
    kept.problems.append("left behind")
    assert kept.summary()["problems"] == ["left behind", "10 s server killed: no answer"]


def test_no_fault_excuses_a_wrong_or_an_endless_answer() -> None:
    for kind in KINDS.values():
        assert not kind.allows & {ledger.WRONG, ledger.LATE}


def sample(at: float, server: int, mib: float, engine: int = 0) -> Sample:
    return Sample(at, server, int(mib * MIB), 30, 4, engine, int(mib * MIB), 100)


def test_growth_is_that_of_the_longest_life_without_its_first_minute() -> None:
    short = [sample(at, 1, 500) for at in range(0, 100, 5)]
    long = [sample(100 + at, 2, 60 if at < WARM else 100 + at / 100) for at in range(0, 400, 5)]
    found = growth([*short, *long])
    server = found["server"]
    assert server["seconds"] == 395 - WARM
    assert server["mib"]["start"] == pytest.approx(100 + WARM / 100, abs=0.5)
    assert server["mib"]["end"] == pytest.approx(104, abs=0.5)
    assert server["files"] == {"start": 30, "end": 30, "most": 30}
    assert found["engine"] == {"seconds": 0.0, "mib": None, "files": None}
