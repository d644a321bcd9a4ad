"""Watching canaries: what every request tells of them, and taking back those that are worse.

Everything is counted under the route's id, so a changed route begins anew. Judged is after each
request of a canary; a verdict stops its traffic in this process at once and in the registry, and so
everywhere, as soon as that can be written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from adapters.errors import AdapterctlError
from adapters.frozen import Lane
from adapters.lanes.models import Limits, Route, Split
from adapters.registry.snapshot import Snapshot
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.judging import Verdict, absurd_beyond, judge
from server.gateway.observing import Observation, Role
from server.gateway.route_status import RouteStatus
from server.gateway.windows import Sample, Side

log = logging.getLogger(__name__)

# Seconds between attempts to write a rollback into a registry that cannot be written.
FIRST_RETRY = 1.0
LAST_RETRY = 30.0
# Prompts after which the stable version is asked what it makes of words in no order.
SALADS = 5
# Larger windows, which take longer to judge, are not judged after every request.
LARGE_WINDOW = 200


class RollBack(Protocol):
    """LaneCatalog.roll_back_route: False where that route is another one by now."""

    def __call__(
        self, adapter: str, tag: str, route_id: int, number: int, lane: Lane | None, *, reason: str
    ) -> bool: ...


@dataclass(slots=True)
class Watch:
    """One route with limits: its stable version, and its canaries by version and lane."""

    route: Route
    limits: Limits
    # The version that its tag means now.
    means: int | None = None
    stables: dict[int, Side] = field(default_factory=dict)
    canaries: dict[tuple[int, str], Side] = field(default_factory=dict)
    looks: dict[tuple[int, str], int] = field(default_factory=dict)
    verdicts: dict[tuple[int, str], Verdict] = field(default_factory=dict)

    @property
    def stable(self) -> Side | None:
        """What canaries are held against; another one after the tag has moved."""
        return None if self.means is None else self.stables.get(self.means)

    def side(self, o: Observation) -> Side:
        """Where `o` counts."""
        assert o.number is not None
        if o.role is Role.STABLE:
            if o.number not in self.stables:
                self.stables[o.number] = Side(o.number, o.lane, Role.STABLE, self.limits.window)
            return self.stables[o.number]
        key = (o.number, o.lane)
        if key not in self.canaries:
            self.canaries[key] = Side(o.number, o.lane, Role.CANARY, self.limits.window)
        return self.canaries[key]


class Canaries:
    """All watched routes of this process. To be used inside the running event loop."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        roll_back: RollBack,
        metrics: CanaryMetrics,
        *,
        first_retry: float = FIRST_RETRY,
    ):
        self._snapshot = snapshot
        self._roll_back = roll_back
        self._metrics = metrics
        self._first_retry = first_retry
        self._watches: dict[int, Watch] = {}
        # Route, version and lane of splits that get no requests any more.
        self._withdrawn: set[tuple[int, int, Lane | None]] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def observe(self, o: Observation) -> None:
        """Count one ended request, and judge where it was a canary's."""
        if o.route is None or o.number is None or o.role not in (Role.STABLE, Role.CANARY):
            return
        watch = self.watch(o.adapter, o.route)
        if watch is None or (sample := self._sample(watch, o)) is None:
            return
        watch.side(o).add(sample)
        if sample.why is not None:
            self._metrics.degenerate(o.adapter, o.role, sample.why)
        if o.role is Role.CANARY:
            self._judge(watch, (o.number, o.lane))

    def _sample(self, watch: Watch, o: Observation) -> Sample | None:
        return Sample.of(o, reading=watch.side(o).reading)

    def salads_wanted(self, o: Observation) -> bool:
        """Whether words in no order are to be scored in place of the answer of `o`, too."""
        watch = None if o.route is None else self._watches.get(o.route)
        return watch is not None and o.role is Role.STABLE and len(watch.side(o).salads) < SALADS

    def add_score(self, o: Observation, nats: float, salad: float | None = None) -> None:
        """The stable version has scored the answer of `o`, and perhaps words in no order."""
        watch = None if o.route is None else self._watches.get(o.route)
        if watch is None or o.number is None:
            return
        side = watch.side(o)
        side.add_score(nats, salad)
        self._metrics.scored(o.adapter, o.role, nats)
        keys = [(o.number, o.lane)] if o.role is Role.CANARY else list(watch.canaries)
        for key in keys:
            self._judge(watch, key)

    def watch(self, adapter: str, route_id: int) -> Watch | None:
        """What is measured under a route; None where nobody watches it, or it is gone."""
        record = self._snapshot().adapters.get(adapter)
        if record is None:
            return None
        watch = self._watches.get(route_id)
        if watch is None:
            route = next((one for one in record.routes.values() if one.id == route_id), None)
            if route is None or route.limits is None:
                return None
            self._forget_old_routes()
            watch = self._watches[route_id] = Watch(route, route.limits)
        watch.means = record.tags.get(watch.route.tag)
        return watch

    def withdrawn(self, route_id: int, number: int, lane: Lane | None) -> bool:
        """Whether a split (its own lane, None where it names none) gets no requests any more.

        So from the verdict on, also while the registry cannot be written.
        """
        return (route_id, number, lane) in self._withdrawn

    def status(self, route_id: int) -> RouteStatus:
        """What was measured under a route, for people."""
        watch = self._watches.get(route_id)
        if watch is None:
            return RouteStatus(route=route_id)
        beyond = absurd_beyond(watch.stable)
        stable = None if watch.stable is None else watch.stable.status("", beyond)
        canaries = tuple(
            side.status(_in_words(watch, key), beyond) for key, side in watch.canaries.items()
        )
        return RouteStatus(route=route_id, stable=stable, canaries=canaries)

    async def close(self) -> None:
        """Give up writing; what could not be written is judged anew by the next server."""
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _judge(self, watch: Watch, key: tuple[int, str]) -> None:
        side = watch.canaries[key]
        if key in watch.verdicts or len(side.samples) < watch.limits.least:
            return
        if side.requests % max(1, watch.limits.window // LARGE_WINDOW):
            return
        look = watch.looks[key] = watch.looks.get(key, 0) + 1
        verdict = judge(watch.limits, side, watch.stable, look)
        split = _split_of(watch.route, *key)
        if verdict is None or split is None:
            return
        watch.verdicts[key] = verdict
        self._withdrawn.add((watch.route.id, split.number, split.lane))
        task = asyncio.get_running_loop().create_task(self._take_back(watch.route, split, verdict))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _take_back(self, route: Route, split: Split, verdict: Verdict) -> None:
        """Write the rollback, however long that takes."""
        what = f"{route.adapter}:{route.tag} canary v{split.number}"
        log.warning("%s gets no more requests: %s", what, verdict.words)
        wait = self._first_retry
        while True:
            try:
                done = await asyncio.to_thread(
                    self._roll_back,
                    route.adapter,
                    route.tag,
                    route.id,
                    split.number,
                    split.lane,
                    reason=verdict.words,
                )
            except (AdapterctlError, OSError) as error:
                self._metrics.rollback_failed(route.adapter)
                log.error("%s cannot be taken back in the registry yet: %s", what, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LAST_RETRY)
                continue
            if done:
                self._metrics.rolled_back(route.adapter, verdict.reason)
                log.warning("%s is taken back", what)
            return

    def _forget_old_routes(self) -> None:
        now = {
            route.id for one in self._snapshot().adapters.values() for route in one.routes.values()
        }
        self._watches = {i: watch for i, watch in self._watches.items() if i in now}
        self._withdrawn = {one for one in self._withdrawn if one[0] in now}


def _split_of(route: Route, number: int, lane: str) -> Split | None:
    """The split that brought a request to a version on a lane; None: it was answered elsewhere
    than its split says, for want of an engine, and tells nothing of that."""
    mine = [split for split in route.splits if split.number == number]
    exact = next((split for split in mine if split.lane is not None and split.lane == lane), None)
    return exact or next((split for split in mine if split.lane is None), None)


def _in_words(watch: Watch, key: tuple[int, str]) -> str:
    verdict = watch.verdicts.get(key)
    if verdict is not None:
        return f"taken back: {verdict.words}"
    missing = watch.limits.least - len(watch.canaries[key].samples)
    return f"needs {missing} more requests" if missing > 0 else "no worse so far"
