"""The books of a soak: what every request became, which faults there were, and which of the
failures those faults explain."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OK = "ok"
# The client's own words, beside the codes of error documents.
REFUSED = "refused"  # nobody listens
CUT = "cut"  # the connection ended in the middle, without a word
LATE = "late"  # no end within the client's patience
WRONG = "wrong"  # an answer, but not of the adapter that was asked
# Seconds after a fault's end in which a request that began during it may still fail.
SLACK = 5.0
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: `kind` of client, what it became, when (seconds of the soak)."""

    kind: str
    result: str
    began: float
    ended: float
    detail: str = ""


@dataclass(slots=True)
class Fault:
    """One fault; `allows` are the results that it explains, `problem` what went wrong in it."""

    kind: str
    began: float
    allows: frozenset[str]
    over: float | None = None
    detail: str = ""
    problem: str = ""

    def explains(self, outcome: Outcome, now: float) -> bool:
        """Whether the request was under way while the fault was felt, and failed as it may."""
        over = (now if self.over is None else self.over) + SLACK
        return (
            outcome.result in self.allows and outcome.ended >= self.began and outcome.began <= over
        )


@dataclass(slots=True)
class Ledger:
    """Everything that happened; times are seconds since it was opened."""

    began: float = field(default_factory=time.monotonic)
    outcomes: list[Outcome] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def note(self, kind: str, result: str, began: float, detail: str = "") -> Outcome:
        """One request has ended."""
        outcome = Outcome(kind, result, began, self.now(), detail)
        self.outcomes.append(outcome)
        return outcome

    def open(self, kind: str, allows: Iterable[str]) -> Fault:
        """A fault begins."""
        fault = Fault(kind, self.now(), frozenset(allows))
        self.faults.append(fault)
        return fault

    def unexplained(self) -> list[Outcome]:
        """The failures that no fault explains; there must be none."""
        now = self.now()
        return [
            one
            for one in self.outcomes
            if one.result != OK and not any(fault.explains(one, now) for fault in self.faults)
        ]

    def summary(self) -> dict[str, Any]:
        """Counts by kind and by cause, and every fault, as a JSON document."""
        unexplained = self.unexplained()
        lost = set(map(id, unexplained))
        failures: dict[str, Counter[str]] = {}
        now = self.now()
        for one in self.outcomes:
            if one.result == OK or id(one) in lost:
                continue
            cause = next(fault.kind for fault in self.faults if fault.explains(one, now))
            failures.setdefault(cause, Counter())[one.result] += 1
        return {
            "requests": len(self.outcomes),
            "ok": sum(one.result == OK for one in self.outcomes),
            "by_kind": dict(Counter(one.kind for one in self.outcomes)),
            "failures_by_fault": {cause: dict(found) for cause, found in failures.items()},
            "unexplained": len(unexplained),
            "unexplained_shown": [
                f"{one.began:.1f}-{one.ended:.1f} s {one.kind}: {one.result} {one.detail}"
                for one in unexplained[:_SHOWN]
            ],
            "faults": dict(Counter(fault.kind for fault in self.faults)),
            "faults_shown": [_shown(fault) for fault in self.faults],
            "problems": [
                *self.problems,
                *(
                    f"{one.began:.0f} s {one.kind}: {one.problem}"
                    for one in self.faults
                    if one.problem
                ),
            ],
        }


def _shown(fault: Fault) -> dict[str, Any]:
    over = None if fault.over is None else round(fault.over - fault.began, 1)
    return {
        "kind": fault.kind,
        "at": round(fault.began, 1),
        "over_after": over,
        "detail": fault.detail,
    }
