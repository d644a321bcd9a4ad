"""A sliding window of a minute as two counters, and how long until there is room in it.

The sliding window counter as the library `limits` keeps it: what the minute before used counts by
the part of it that still lies in the last 60 seconds. It takes the same room for a million tokens
as for one, and no burst at the edge of two minutes gets twice the quota.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

# Seconds.
MINUTE = 60


@dataclass(frozen=True, slots=True)
class Window:
    """What was used, as read at one moment.

    previous, current: units used in the minute before and in this one; previous_left, current_left:
    seconds until each counts for nothing any more, at most 60 and 120.
    """

    previous: int = 0
    previous_left: float = 0.0
    current: int = 0
    current_left: float = 0.0

    def used(self, later: float = 0.0) -> float:
        """Units that count, so many seconds after the reading if nothing more is used."""
        before = self.previous * _share(self.previous_left - later)
        return before + self.current * _share(self.current_left - later)

    def reset(self) -> float:
        """Seconds until nothing of it counts."""
        if self.current > 0:
            return self.current_left
        return self.previous_left if self.previous > 0 else 0.0

    def until(self, units: float) -> float:
        """Seconds until at most so many units count; 0 where that is so already."""
        units = max(0.0, units)
        if self.used() <= units:
            return 0.0
        # Where the falling line bends: while the previous minute fades the present one counts
        # whole, and fades only after that.
        bends = sorted({0.0, self.previous_left, max(0.0, self.current_left - MINUTE)})
        bends.append(max(self.current_left, bends[-1]))
        for begin, end in pairwise(bends):
            high, low = self.used(begin), self.used(end)
            if low <= units:
                return begin if high <= units else _between(begin, end, high, low, units)
        return bends[-1]


def _between(begin: float, end: float, high: float, low: float, units: float) -> float:
    return begin + (end - begin) * (high - units) / (high - low)


def _share(left: float) -> float:
    return min(1.0, max(0.0, left / MINUTE))
