"""Whether a request is within its key's and its tenant's quotas, and what it used in the end.

1. On arrival: a place among those answered at once, one request, and the tokens that it is expected
   to use (its prompt's estimate, and what this tenant's answers are like, at most its `max_tokens`)
   must be free in each of its quotas.
2. Meanwhile those tokens are held back, in this process only.
3. At its end the engine's own count is charged in their place, also where that is more than was
   left: then nothing more is admitted until the minute has room again.

A request that is refused costs nothing. One that could use more than a whole minute's quota is
admitted while nothing of the quota is used.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapters.errors import AdapterctlError, QuotaExceeded
from adapters.tenants import UNLIMITED, Quota
from server.gateway.admission.tickets import Cost
from server.gateway.callers import Caller
from server.gateway.quotas.counters import Counters
from server.gateway.quotas.headers import Left, rate_headers, retry_after
from server.gateway.quotas.metrics import QuotaMetrics, Usage
from server.gateway.quotas.windows import MINUTE, Window
from server.quota_settings import EVERYBODY

Kind = Literal["requests", "tokens", "concurrent"]

# Tokens of an answer before anything is known of a tenant's, and how fast that follows them.
_TYPICAL_ANSWER = 128.0
_FOLLOW = 0.1
_MOST_TENANTS = 10_000
# Quotas that the gauge looks at: those that had a request last.
_MOST_SEEN = 10_000
# Seconds after which it is worth asking again for a place that another request has.
_SOON = 1.0


@dataclass(slots=True)
class _Held:
    """One quota that a request counts in, and its windows as they were last read.

    `name`: of its counters; `words`: whose it is; `read`: when.
    """

    tenant: str
    name: str
    words: str
    quota: Quota
    requests: Window | None = None
    tokens: Window | None = None
    read: float = 0.0


@dataclass(slots=True, eq=False)
class Grant:
    """One request within its quotas; `end` it, whatever happened. `headers`: for its answer."""

    quotas: Quotas
    tenant: str
    cost: Cost
    expected: int
    held: list[_Held]
    member: str
    headers: dict[str, str] = field(default_factory=dict)
    _open: bool = True

    def end(self, used: int | None, written: int | None = None) -> None:
        """It used so many tokens, `written` of them its answer's; None: nobody counted them, so
        what was expected is charged. Further calls change nothing."""
        if self._open:
            self._open = False
            self.quotas.ended(self, used, written)


class Quotas:
    """Everybody's quotas. Used on one event loop."""

    def __init__(
        self, counters: Counters, metrics: QuotaMetrics, tenants: Mapping[str, Quota] | None = None
    ):
        """`tenants`: their quotas by name, EVERYBODY for all others."""
        self._counters = counters
        self._metrics = metrics
        self._tenants = dict(tenants or {})
        # Tokens that requests in flight are expected to use, by counter.
        self._reserved: dict[str, int] = {}
        self._inside: dict[str, int] = {}
        self._typical: OrderedDict[str, float] = OrderedDict()
        self._settling: set[asyncio.Task[None]] = set()
        self._seen: OrderedDict[str, _Held] = OrderedDict()
        metrics.usages = self.usages

    def replace(self, tenants: Mapping[str, Quota]) -> None:
        """Other quotas of tenants from now on; what was used of the old ones still counts."""
        self._tenants = dict(tenants)

    async def admit(self, caller: Caller, cost: Cost) -> Grant | None:
        """A grant, None where nothing limits this caller. Raises QuotaExceeded with what to wait
        for, QuotaStorageDown."""
        held = list(self._quotas_of(caller))
        if not held:
            return None
        expected = self._expected(caller.tenant, cost)
        grant = Grant(self, caller.tenant, cost, expected, held, uuid.uuid4().hex)
        # From before the first await: requests that come at once see each other.
        for one in held:
            if one.quota.tokens_per_minute is not None:
                self._add(self._reserved, one.name, expected)
        entered: list[_Held] = []
        try:
            await self._look(held)
            self._check(grant)
            await self._enter(grant, entered)
            await self._take(grant)
        except BaseException:
            self._give_back(grant)
            await self._leave(grant, entered)
            raise
        grant.headers = rate_headers(self._left(held))
        return grant

    def ended(self, grant: Grant, used: int | None, written: int | None) -> None:
        """For Grant: settle it. What needs the storage is done beside the requests."""
        self._give_back(grant)
        if written:
            typical = self._typical_of(grant.tenant)
            places = max(1, grant.cost.places)
            typical += _FOLLOW * (written / places - typical)
            self._typical[grant.tenant] = typical
            self._typical.move_to_end(grant.tenant)
            while len(self._typical) > _MOST_TENANTS:
                self._typical.popitem(last=False)
        tokens = grant.expected if used is None else used
        entered = [one for one in grant.held if one.quota.concurrent is not None]
        charged = [one for one in grant.held if one.quota.tokens_per_minute is not None]
        if entered or (charged and tokens > 0):
            settling = asyncio.create_task(self._settle(grant, entered, charged, tokens))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)

    def usages(self) -> Iterator[Usage]:
        """What is used of the quotas that had requests lately, as far as this process knows."""
        now = time.monotonic()
        for one in list(self._seen.values()):
            quota, later = one.quota, now - one.read
            if quota.requests_per_minute is not None and one.requests is not None:
                ratio = one.requests.used(later) / quota.requests_per_minute
                yield one.tenant, "requests", ratio
            if quota.tokens_per_minute is not None and one.tokens is not None:
                used = one.tokens.used(later) + self._reserved.get(one.name, 0)
                yield one.tenant, "tokens", used / quota.tokens_per_minute
            if quota.concurrent is not None:
                yield one.tenant, "concurrent", self._inside.get(one.name, 0) / quota.concurrent

    async def settled(self) -> None:
        """What has ended is counted."""
        while self._settling:
            await asyncio.wait(self._settling)

    async def close(self) -> None:
        """Count what has ended, and release the storage."""
        await self.settled()
        await self._counters.close()

    # --- whose quotas, and what is expected ---------------------------------------------------

    def _quotas_of(self, caller: Caller) -> Iterator[_Held]:
        quota = caller.quota
        if quota is not None and not quota.unlimited:
            yield _Held(caller.tenant, f"key/{caller.key}", "this key", quota)
        quota = self._tenants.get(caller.tenant) or self._tenants.get(EVERYBODY, UNLIMITED)
        if not quota.unlimited:
            yield _Held(
                caller.tenant, f"tenant/{caller.tenant}", f"tenant '{caller.tenant}'", quota
            )

    def _expected(self, tenant: str, cost: Cost) -> int:
        if cost.places == 0:
            return 0
        answer = self._typical_of(tenant)
        if cost.max_tokens is not None:
            answer = min(answer, cost.max_tokens)
        return cost.prompt_tokens + round(answer * cost.places)

    def _typical_of(self, tenant: str) -> float:
        return self._typical.get(tenant, _TYPICAL_ANSWER)

    # --- admission ----------------------------------------------------------------------------

    async def _look(self, held: list[_Held]) -> None:
        for one in held:
            if one.quota.requests_per_minute is not None:
                one.requests = await self._counters.look(f"{one.name}/requests")
            if one.quota.tokens_per_minute is not None:
                one.tokens = await self._counters.look(f"{one.name}/tokens")
            one.read = time.monotonic()
            self._seen[one.name] = one
            self._seen.move_to_end(one.name)
        while len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def _check(self, grant: Grant) -> None:
        """Raise QuotaExceeded for what is full already."""
        for one in grant.held:
            wait = _requests_wait(one)
            if wait is not None:
                raise self._refused(grant, one, "requests", wait)
            wait = self._tokens_wait(one, grant.expected)
            if wait is not None:
                raise self._refused(grant, one, "tokens", wait)

    def _tokens_wait(self, one: _Held, expected: int) -> float | None:
        """Seconds until so many tokens are free, None if they are."""
        limit = one.quota.tokens_per_minute
        if limit is None or one.tokens is None:
            return None
        others = self._reserved.get(one.name, 0) - expected
        # What alone is more than the quota must wait for an empty minute, not for ever.
        free = limit - others - min(expected, limit)
        if one.tokens.used() <= free:
            return None
        return max(_SOON, one.tokens.until(free)) if free >= 0 else _SOON

    async def _enter(self, grant: Grant, entered: list[_Held]) -> None:
        for one in grant.held:
            limit = one.quota.concurrent
            if limit is None:
                continue
            if not await self._counters.enter(one.name, grant.member, limit):
                raise self._refused(grant, one, "concurrent", _SOON)
            entered.append(one)
            self._add(self._inside, one.name, 1)

    async def _take(self, grant: Grant) -> None:
        for one in grant.held:
            limit = one.quota.requests_per_minute
            if limit is None or one.requests is None:
                continue
            # Another gateway, or another request of this one, may have been quicker.
            if not await self._counters.take(f"{one.name}/requests", 1, limit):
                raise self._refused(grant, one, "requests", one.requests.until(limit - 1))
            one.requests = _with(one.requests, 1)

    def _refused(self, grant: Grant, one: _Held, kind: Kind, wait: float) -> QuotaExceeded:
        self._metrics.rejected(grant.tenant, kind)
        seconds = retry_after(wait)
        quota = one.quota
        has = {
            "requests": f"has made its {quota.requests_per_minute} requests of this minute",
            "tokens": f"has used its {quota.tokens_per_minute} tokens of this minute, or this "
            "request would",
            "concurrent": f"has {quota.concurrent} requests being answered, as many as it may",
        }
        error = QuotaExceeded(
            f"{one.words} {has[kind]}; try again in {seconds} s", retry_after=seconds
        )
        error.headers = rate_headers(self._left(grant.held, without=grant))
        return error

    def _left(self, held: list[_Held], without: Grant | None = None) -> list[Left]:
        """What is left in each quota; `without` the request that was not admitted."""
        found = []
        for one in held:
            if one.quota.requests_per_minute is not None and one.requests is not None:
                used = one.requests.used()
                reset = one.requests.reset()
                found.append(Left("requests", one.quota.requests_per_minute, used, reset))
            if one.quota.tokens_per_minute is not None and one.tokens is not None:
                reserved = self._reserved.get(one.name, 0)
                reserved -= 0 if without is None else without.expected
                used = one.tokens.used() + reserved
                reset = one.tokens.reset()
                found.append(Left("tokens", one.quota.tokens_per_minute, used, reset))
        return found

    # --- settlement ---------------------------------------------------------------------------

    def _give_back(self, grant: Grant) -> None:
        for one in grant.held:
            if one.quota.tokens_per_minute is not None:
                self._add(self._reserved, one.name, -grant.expected)

    async def _leave(self, grant: Grant, entered: list[_Held]) -> None:
        for one in entered:
            self._add(self._inside, one.name, -1)
            await self._counters.leave(one.name, grant.member)

    async def _settle(
        self, grant: Grant, entered: list[_Held], charged: list[_Held], tokens: int
    ) -> None:
        await self._leave(grant, entered)
        for one in charged if tokens > 0 else ():
            try:
                await self._counters.charge(f"{one.name}/tokens", tokens)
            except AdapterctlError:
                return  # Nobody can count it now; that was logged, and requests are refused.
            seen = self._seen.get(one.name)
            if seen is not None and seen.tokens is not None:
                seen.tokens = _with(seen.tokens, tokens)

    @staticmethod
    def _add(counts: dict[str, int], name: str, more: int) -> None:
        """What comes to nothing is forgotten."""
        left = counts.pop(name, 0) + more
        if left > 0:
            counts[name] = left


def _requests_wait(one: _Held) -> float | None:
    """Seconds until there is room for one more request, None if there is."""
    limit = one.quota.requests_per_minute
    if limit is None or one.requests is None or one.requests.used() + 1 <= limit:
        return None
    return one.requests.until(limit - 1)


def _with(window: Window, more: int) -> Window:
    """With units that were counted since it was read."""
    left = window.current_left if window.current else window.previous_left + MINUTE
    return Window(window.previous, window.previous_left, window.current + more, left)
