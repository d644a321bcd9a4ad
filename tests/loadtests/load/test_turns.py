"""Who asks when, on a clock that only the test moves."""

from __future__ import annotations

from typing import Any

from loadtests.load.plan import TenantPlan
from loadtests.load.records import Record
from loadtests.load.turns import Turns
from loadtests.scenarios import parse


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def turns(clock: Clock, **table: Any) -> Turns:
    scenario = parse("mine", table)
    plan = TenantPlan(scenario, scenario.askers[0], ["m"], None)
    return Turns(scenario, plan, clock, clock.sleep)


def test_a_server_that_stalls_does_not_look_faster_for_it() -> None:
    """Coordinated omission: one request a second, one at a time, the third takes ten seconds."""
    clock = Clock()
    found = turns(
        clock, load={"kind": "rate", "rate": 1, "spacing": "even", "most": 1}, duration=20
    )
    latencies = []
    while turn := found.next():
        sent = clock.now
        clock.now += 10.0 if turn.item.index == 2 else 0.25
        record = Record(
            tenant="default", index=turn.item.index, model="m", due=turn.due, sent=sent,
            end=clock.now, warmup=turn.warmup, outcome="ok", chunks=(clock.now,),
        )  # fmt: skip
        latencies.append(record.ttft_ms)
    assert len(latencies) == 20, "the stall costs no request"
    assert latencies[:3] == [250, 250, 10_000]
    # Those behind the stall waited, too: a second less each, and a quarter for the one before.
    assert latencies[3:6] == [9_250, 8_500, 7_750]
    assert latencies[-1] == 250


def test_a_rate_waits_for_its_time_and_ends() -> None:
    clock = Clock()
    found = turns(clock, load={"kind": "rate", "rate": 2, "spacing": "even"}, duration=1, warmup=1)
    seen = []
    while turn := found.next():
        seen.append((turn.due, clock.now, turn.warmup))
    assert seen == [(0, 0, True), (0.5, 0.5, True), (1, 1, False), (1.5, 1.5, False)]


def test_closed_users_ask_until_the_end_or_the_number() -> None:
    clock = Clock()
    found = turns(clock, load={"kind": "closed", "users": 1}, requests=3, warmup_requests=2)
    seen = []
    while turn := found.next():
        seen.append(turn.warmup)
        clock.now += 1
    assert seen == [True, True, False, False, False]
    late = turns(
        clock,
        tenants=[{"name": "a", "begin": 9, "load": {"kind": "closed", "users": 1}}],
        duration=10,
    )
    clock.now = 0
    first = late.next()
    assert first is not None
    assert first.due == clock.now == 9
    clock.now = 10
    assert late.next() is None
