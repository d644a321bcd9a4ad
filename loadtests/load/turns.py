"""When the users of a tenant ask: one after another's answer, or as requests are due."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from loadtests.load.plan import Item, TenantPlan
from loadtests.scenarios import Rate, Scenario


@dataclass(frozen=True, slots=True)
class Turn:
    """A request to send now. `due` is when it should have been sent, seconds from the start."""

    item: Item
    due: float
    warmup: bool


class Turns:
    """What all users of one tenant share. `clock` gives seconds from the start, `sleep` waits.

    Nothing here waits between taking a number and handing it out, so greenlets need no lock.
    """

    def __init__(
        self,
        scenario: Scenario,
        plan: TenantPlan,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._sleep = sleep
        self._end = scenario.end
        self._warmup_seconds = scenario.warmup_seconds
        self._warmup_requests = plan.warmup_requests
        self._last = None
        if scenario.requests is not None:
            self._last = self._warmup_requests + scenario.requests
        self._indices = itertools.count()
        self._arrivals = plan.arrivals() if isinstance(plan.tenant.load, Rate) else None

    def next(self) -> Turn | None:
        """Waits until somebody has to ask; None: this tenant asks no more."""
        if self._arrivals is None and self._clock() < self._plan.tenant.begin:
            self._sleep(self._plan.tenant.begin - self._clock())
        due = self._clock() if self._arrivals is None else next(self._arrivals)
        if self._end is not None and due >= self._end:
            return None
        index = next(self._indices)
        if self._last is not None and index >= self._last:
            return None
        if (early := due - self._clock()) > 0:
            self._sleep(early)
        warmup = due < self._warmup_seconds or index < self._warmup_requests
        return Turn(self._plan.item(index), due, warmup)
