"""What an answer says of quotas, as OpenAI's API says it.

https://platform.openai.com/docs/guides/rate-limits (x-ratelimit-limit-requests and so on): the
limit, what remains of it, and the time until it is as if nothing had been used, like `1s` or
`6m0s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# A window of a minute is empty after two, whatever was in it.
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Left:
    """One quota as it is: units used of `limit`, and the seconds until none of them counts."""

    kind: Literal["requests", "tokens"]
    limit: int
    used: float
    reset: float

    @property
    def remaining(self) -> int:
        """Whole units that may still be used."""
        return max(0, self.limit - math.ceil(self.used))


def rate_headers(quotas: Iterable[Left]) -> dict[str, str]:
    """Of each kind the quota with the least left: a key's own, or its tenant's."""
    tightest: dict[str, Left] = {}
    for one in quotas:
        other = tightest.get(one.kind)
        if other is None or one.remaining < other.remaining:
            tightest[one.kind] = one
    headers = {}
    for kind, one in tightest.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(one.limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(one.remaining)
        headers[f"x-ratelimit-reset-{kind}"] = duration(one.reset)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes one: `250ms`, `12s`, `1m30s`; rounded up."""
    if seconds <= 0:
        return "0s"
    if seconds < 1:
        return f"{min(999, math.ceil(seconds * 1000))}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest}s" if minutes else f"{whole}s"


def retry_after(seconds: float) -> int:
    """Whole seconds for the header, 1 to 120."""
    return min(_LONGEST, max(1, math.ceil(seconds)))
