"""Who gets a metric label of its own: the busiest names, so that series stay bounded.

Names are taken as they come while there is room. After that, one that is left out and was asked
for clearly more often than the quietest of the named takes its place; the series of the one that
leaves are removed, and what it does from then on counts as `other`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

OTHER = "other"
# Seconds between two looks at who is busy.
PERIOD = 300.0
# How much busier than the quietest: series that come and go cost more than a wrong order.
_CLEARLY = 2.0
# Names without a label that are counted, for each that has one.
_CANDIDATES = 4


class TopLabels:
    """At most `limit` names at a time, and `other` for the rest. On one event loop."""

    def __init__(
        self,
        limit: int,
        gone: Callable[[str], None] = lambda name: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`gone` is told of a name that has lost its label."""
        self._limit = limit
        self._gone = gone
        self._clock = clock
        # How often each was used of late.
        self._named: dict[str, float] = {}
        self._others: dict[str, float] = {}
        self._look_at = clock() + PERIOD

    def use(self, name: str) -> str:
        """The label for something that `name` does now."""
        if self._clock() >= self._look_at:
            self._look()
        if self.of(name) == name:
            self._named[name] += 1
            return name
        if name in self._others or len(self._others) < _CANDIDATES * self._limit:
            self._others[name] = self._others.get(name, 0) + 1
        return OTHER

    def of(self, name: str) -> str:
        """The same, for what says nothing of how busy it is."""
        if name in self._named:
            return name
        if len(self._named) >= self._limit:
            return OTHER
        self._named[name] = 0
        return name

    def _look(self) -> None:
        self._look_at = self._clock() + PERIOD
        quiet = sorted(self._named, key=self._named.__getitem__)
        busy = sorted(self._others, key=self._others.__getitem__, reverse=True)
        for old, new in zip(quiet, busy, strict=False):
            if self._others[new] <= _CLEARLY * self._named[old]:
                break
            del self._named[old]
            self._named[new] = self._others.pop(new)
            self._gone(old)
        # What was long ago counts ever less.
        self._named = {name: count / 2 for name, count in self._named.items()}
        self._others = {name: count / 2 for name, count in self._others.items() if count >= 1}
