"""Engines of merged models: started when asked for, stopped when idle, within a memory limit.

Everything happens on one event loop, so what is counted needs no lock. What takes a place is
decided by one start at a time (`_admission`): memory that one start makes free is not another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from adapters.errors import AdapterctlError, EngineStartFailed, EngineUnavailable, NotDeployed
from adapters.frozen import Frozen
from server.engine.memory import MemoryPlan
from server.engine.merged import (
    EngineHold,
    Member,
    MergedModel,
    MergedState,
    MergedStatus,
    PreparedEngine,
)
from server.engine.room import Answer, Claim, Occupant, Room, make_room, refusal
from server.ongoing import Ongoing
from server.settings import ServeSettings

logger = logging.getLogger(__name__)

# An engine that answered this short a time ago is not evicted: the next request of a steady
# stream would have to wait for a start, and its start evict the other in turn.
EVICTION_GRACE = 5.0
# How often idle engines, drains and pinned ones that are not up are looked at.
INTERVAL = 1.0
# Retry-After of what waits for memory, and when a pinned one that was refused is tried again.
REFUSED_RETRY = 10


Prepare = Callable[[MergedModel], PreparedEngine]


class PoolMemory(Frozen):
    """Bytes: the limit for all engines, and what the base's and the merged ones are planned at."""

    limit: int
    base: int
    merged: int
    engines: int
    most_engines: int


@dataclass(slots=True)
class PoolCounts:
    """What happened since the server started."""

    starts: int = 0
    failures: int = 0
    evictions: int = 0
    refusals: int = 0
    idle_stops: int = 0


class EnginePool:
    """The engines of merged models. Made anywhere, used on one event loop, closed at the end."""

    def __init__(
        self,
        settings: ServeSettings,
        prepare: Prepare,
        *,
        limit: int,
        base: Callable[[], int],
        available: Callable[[], int] | None = None,
        grace: float = EVICTION_GRACE,
        interval: float = INTERVAL,
    ):
        """`prepare` is called in a thread, before each start; `limit` is for all engines, of which
        the base's own takes `base()` bytes. `available` says what is free on the machine now: other
        programs may have taken what was planned for engines; None: nobody else is there."""
        self._settings = settings
        self._prepare = prepare
        self._limit = limit
        self._base = base
        self._available = available
        self._grace = grace
        self._interval = interval
        self._members: dict[str, Member] = {}
        self._admission = asyncio.Lock()
        self._changed = asyncio.Event()
        self._keeper = Ongoing(self._keep)
        self._closed = False
        self.counts = PoolCounts()

    async def lease(self, model: MergedModel, *, wait: float) -> EngineHold:
        """The model's engine, started if need be; release what is returned.

        Raises EngineUnavailable with Retry-After: not ready within `wait` seconds, its start
        failed, or there is no room (with figures). NotDeployed: taken out of service meanwhile.
        """
        member = self._member(model)
        deadline = time.monotonic() + wait
        member.waiting += 1
        waited = False
        try:
            while True:
                member.touch()
                hold = self._hold(member)
                if hold is not None:
                    return hold
                self._raise_hopeless(member, waited)
                self._begin(member)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise member.not_yet(wait)
                await member.change(left)
                waited = True
        finally:
            member.waiting -= 1
            self._notify()

    def ready(self, digest: str) -> bool:
        """Whether a request to this model would be answered without a wait."""
        member = self._members.get(digest)
        return member is not None and member.ready and not member.retired

    def try_hold(self, digest: str) -> EngineHold | None:
        """The model's engine if it is ready now; nothing is started."""
        member = self._members.get(digest)
        return None if member is None else self._hold(member)

    def ensure(self, model: MergedModel) -> None:
        """Start the model's engine ahead of time, if there is room or somebody idle to evict.

        Does not wait, and raises nothing: `statuses()` says what became of it. Cheap enough to be
        called with every request that another lane answers meanwhile.
        """
        if self._closed:
            return
        member = self._member(model)
        member.touch()
        too_early = member.problem is not None and time.monotonic() < member.retry_at
        if not (member.retired or member.ready or too_early):
            member.ahead = True
            self._begin(member)

    def retain(self, wanted: Mapping[str, MergedModel], pinned: Collection[str]) -> None:
        """What deployments name, by digest; whatever else runs is drained and stopped.

        Pinned ones are started, kept, and never evicted. Call it before leasing what a new
        snapshot names: one that was retired is not leased again until it is named here.
        """
        if self._closed:
            return
        for model in wanted.values():
            member = self._member(model)
            member.model = model
            member.retire_at = None
        for digest, member in list(self._members.items()):
            member.pinned = digest in pinned and digest in wanted
            if digest not in wanted and not member.retired:
                member.retire_at = time.monotonic() + self._settings.merged_drain
                member.ahead = False
                member.notify()
        self._look()

    def statuses(self) -> list[MergedStatus]:
        """Every model that is deployed or has an engine, in the order of their names."""
        found = [member.status() for member in self._members.values()]
        return sorted(found, key=lambda status: (status.name, status.model))

    def memory(self) -> PoolMemory:
        """How the memory is shared out now, as planned."""
        return PoolMemory(
            limit=self._limit,
            base=self._base(),
            merged=sum(m.plan.total for m in self._members.values() if m.plan),
            engines=sum(m.plan is not None for m in self._members.values()),
            most_engines=self._settings.merged_engines,
        )

    async def close(self) -> None:
        """Stop every engine, also those that are starting; whoever waits gets an error."""
        self._closed = True
        await self._keeper.close()
        tasks = [task for m in self._members.values() if (task := self._leave(m)) is not None]
        if tasks:
            await asyncio.wait(tasks)
        for member in self._members.values():
            member.notify()

    def _member(self, model: MergedModel) -> Member:
        if self._closed:
            raise EngineUnavailable("the server is stopping; try again in 5 s", retry_after=5)
        self._keeper.start()
        member = self._members.get(model.digest)
        if member is None:
            member = self._members[model.digest] = Member(model, self._notify)
        return member

    def _hold(self, member: Member) -> EngineHold | None:
        if self._closed or member.retired or not member.ready:
            return None
        return EngineHold(member)

    def _raise_hopeless(self, member: Member, waited: bool) -> None:
        """Raise where waiting (longer) would be in vain."""
        if self._closed:
            raise EngineUnavailable("the server is stopping; try again in 5 s", retry_after=5)
        if member.retired:
            raise NotDeployed(f"'{member.model.name}' was taken out of service")
        obstacle = member.obstacle()
        if obstacle is not None:
            raise obstacle
        # A refusal counts for those who waited for it; who comes later may find room.
        if waited and member.state is MergedState.STOPPED and member.problem is not None:
            raise member.problem

    def _begin(self, member: Member) -> None:
        if self._closed or member.retired or not member.startable():
            return
        member.problem = None
        member.set(MergedState.QUEUED)
        member.task = asyncio.create_task(self._start(member))

    async def _start(self, member: Member) -> None:
        began = time.monotonic()
        try:
            prepared = await asyncio.to_thread(self._prepare, member.model)
            async with self._admission:
                if not await self._room_for(member, prepared.plan):
                    return
                member.plan = prepared.plan
                member.prepared = prepared
            member.set(MergedState.STARTING)
            await _to_the_end(prepared.hold)
            member.engine = prepared.make(member.notify)
            await member.engine.start()
        except AdapterctlError as error:
            self._failed(member, error)
        except Exception as mistake:
            # Ours. It must not be tried again and again by those who wait, either.
            self._failed(member, EngineStartFailed(f"the engine cannot be started: {mistake!r}"))
            raise
        else:
            self.counts.starts += 1
            member.started(time.monotonic() - began)
        finally:
            member.ahead = False
            if member.state not in {MergedState.READY, MergedState.FAILED}:
                # Cancelled, refused, or nobody wants it any more.
                self._free(member)
                member.set(MergedState.STOPPED)
            self._forget(member)

    def _failed(self, member: Member, error: AdapterctlError) -> None:
        self.counts.failures += 1
        logger.error("the merged engine of %s: %s", member.model.name, error.message)
        self._free(member)
        member.fail(error)

    async def _room_for(self, member: Member, plan: MemoryPlan) -> bool:
        """Wait until there is room; False where there is none, or nobody wants it any more."""
        while member.wished and not self._closed:
            room, occupants = self._room(), self._occupants()
            answer, chosen = make_room(room, occupants, plan.total)
            if answer is Answer.FITS:
                return True
            if answer is Answer.REFUSE:
                self.counts.refusals += 1
                member.problem = EngineUnavailable(
                    refusal(room, occupants, member.model.name, plan), retry_after=REFUSED_RETRY
                )
                member.retry_at = time.monotonic() + REFUSED_RETRY
                return False
            for one in chosen:
                self.counts.evictions += 1
                logger.info("evicting %s for %s", one.name, member.model.name)
                self._leave(self._members[one.key])
            await self._change(self._grace)
        return False

    def _room(self) -> Room:
        base, others = self._base(), 0
        if self._available is not None:
            # Those that start have not taken theirs yet; those that are up are taken to have.
            taken = [
                m.plan.total
                for m in self._members.values()
                if m.plan is not None and m.state is not MergedState.STARTING
            ]
            others = max(0, self._limit - base - sum(taken) - self._available())
        return Room(self._limit, base, self._settings.merged_engines, others)

    def _occupants(self) -> list[Occupant]:
        return [
            Occupant(digest, member.model.name, member.plan.total, self._claim(member), member.used)
            for digest, member in self._members.items()
            if member.plan is not None
        ]

    def _claim(self, member: Member) -> Claim:
        if member.state is MergedState.STOPPING:
            return Claim.LEAVING
        if member.pinned:
            return Claim.PINNED
        if member.state is not MergedState.READY or not member.unused:
            return Claim.HELD
        rested = time.monotonic() - member.used >= self._grace
        return Claim.IDLE if rested else Claim.RESTING

    def _leave(self, member: Member) -> asyncio.Task[None] | None:
        """Stop the member, whatever it is doing; the task in which that happens."""
        if member.state in {MergedState.QUEUED, MergedState.STARTING}:
            assert member.task is not None
            # Once only: a second one would interrupt the cleaning up.
            member.task.cancel()
            member.set(MergedState.STOPPING)
        elif member.state is MergedState.READY:
            member.set(MergedState.STOPPING)
            member.task = asyncio.create_task(self._stop(member))
        return member.task

    async def _stop(self, member: Member) -> None:
        assert member.engine is not None
        try:
            await member.engine.stop()
        finally:
            self._free(member)
            member.set(MergedState.STOPPED)
            self._forget(member)

    def _free(self, member: Member) -> None:
        """Nothing of its engine is left: its memory and the lease on its model are free."""
        prepared, member.prepared = member.prepared, None
        if prepared is not None:
            prepared.release()
        member.engine = None
        member.plan = None

    def _forget(self, member: Member) -> None:
        member.task = None
        if member.retired and self._members.get(member.model.digest) is member:
            del self._members[member.model.digest]

    async def _keep(self) -> None:
        while True:
            await self._change(self._interval)
            self._look()

    def _look(self) -> None:
        """Stop what is retired or idle, start what is pinned."""
        now = time.monotonic()
        idle = self._settings.merged_idle
        for member in list(self._members.values()):
            if member.retire_at is not None:
                over = member.in_flight == 0 or now >= member.retire_at
                if over and self._leave(member) is None:
                    self._forget(member)
            elif member.pinned or member.ahead:
                if now >= member.retry_at:
                    self._begin(member)
            elif member.state is MergedState.READY and member.unused:
                over = idle > 0 and now - member.used >= idle
                if over and self._leave(member) is not None:
                    self.counts.idle_stops += 1

    def _notify(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _change(self, timeout: float) -> None:
        event = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await event.wait()


Result = TypeVar("Result")


async def _to_the_end(call: Callable[[], Result]) -> Result:
    """Run in a thread; when cancelled, wait for its end: what it took can then be given back."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
