"""Admission on an event loop: places that requests take, wait for and give back.

The scheduler decides; here is only who is woken when, and what a wait that fails becomes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.errors import Overloaded
from server.gateway.admission.limits import Limits
from server.gateway.admission.scheduler import QueueFull, Scheduler
from server.gateway.admission.tickets import Ticket, TicketState

# Why a request was refused: the labels of a metric.
FULL = "full"
TENANT_FULL = "tenant_full"
TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class TenantQueue:
    """One tenant at one engine. `service`: tokens of ended requests."""

    tenant: str
    weight: float
    queued: int
    in_flight: int
    places: int
    service: float


@dataclass(frozen=True, slots=True)
class QueueState:
    """One engine's admission now. `slots` None: the engine has none, or does not say."""

    in_flight: int
    places: int
    limit: int
    slots: int | None
    adapters: int
    # Queued, by what holds them back.
    place: int
    slot: int
    prompt: int
    longest: float
    refused: dict[str, int]
    # The ones with something queued or in flight first.
    tenants: tuple[TenantQueue, ...]
    # Queued by adapter (its digest; None: no adapter); none that nobody waits for.
    waiting: Mapping[str | None, int]

    @property
    def queued(self) -> int:
        """All that wait."""
        return self.place + self.slot + self.prompt

    @property
    def waiting_for(self) -> dict[str, int]:
        """All that wait, by what holds them back."""
        return {"place": self.place, "slot": self.slot, "prompt": self.prompt}


class Admission:
    """The door of one engine."""

    def __init__(
        self,
        limits: Limits,
        *,
        slots: int | None,
        prefetch: Callable[[str], None] = lambda _: None,
        resident: Callable[[str], bool] = lambda _: False,
        waited: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`prefetch` is told of adapters that are not `resident` and have a request; it returns at
        once. `waited` is told the seconds of every wait that ended in admission."""
        self.core = Scheduler(limits, slots=slots)
        self.refused: Counter[str] = Counter()
        self._prefetch = prefetch
        self._resident = resident
        self._waited = waited
        self.clock = clock
        self._places: dict[Ticket, Place] = {}
        self._alarm: asyncio.TimerHandle | None = None
        # Whose life the counts belong to: an engine that is started again begins with none.
        self._life: object = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is at the engine."""
        return self.core.queued == 0 and self.core.in_flight == 0

    def alive(self, life: object, *, slots: int | None, pinned: frozenset[str]) -> None:
        """The engine as it is now: `life` is another object after every start of it."""
        if life is not self._life:
            gone, self._life = self._life is not None, life
            self.core.slots.count = slots
            if gone:
                self.core.engine_gone(self.clock())
                self._wake()
        self.core.slots.pinned = pinned

    def enter(self, ticket: Ticket) -> Place:
        """A place, or one in the queue (`admitted` says); nothing is awaited.

        Raises Overloaded where the queue is full. Whatever happens, `release` it at the end.
        """
        adapter, now = ticket.adapter, self.clock()
        if adapter is not None and not (adapter in self.core.slots or self._resident(adapter)):
            self._prefetch(adapter)
        try:
            admitted = self.core.offer(ticket, now)
        except QueueFull as full:
            self.refused[TENANT_FULL if full.of_tenant else FULL] += 1
            raise _overloaded(full) from None
        place = Place(self, ticket)
        if admitted:
            self._waited(0.0)
        else:
            place.future = asyncio.get_running_loop().create_future()
            self._places[ticket] = place
            self._wake()
        return place

    def enter_background(self, ticket: Ticket) -> Place | None:
        """For the gateway's own requests: a place that costs nobody anything, or None."""
        return Place(self, ticket) if self.core.offer_background(ticket, self.clock()) else None

    def state(self, *, tenants: int = 20) -> QueueState:
        """A picture for people and metrics, with at most so many tenants."""
        core = self.core
        now = self.clock()
        held = core.held_back(now)
        shown = sorted(
            core.accounts.known(), key=lambda a: (-a.queued, -a.in_flight, -a.seen, a.name)
        )
        return QueueState(
            in_flight=core.in_flight,
            places=core.places,
            limit=core.limits.places,
            slots=core.slots.count,
            adapters=core.slots.in_flight,
            place=held.place,
            slot=held.slot,
            prompt=held.prompt,
            longest=max((now - ticket.arrived for ticket in self._places), default=0.0),
            refused=dict(self.refused),
            tenants=tuple(
                TenantQueue(a.name, a.weight, a.queued, a.in_flight, a.places, a.total)
                for a in shown[:tenants]
            ),
            waiting=self._waiting(),
        )

    def _waiting(self) -> Counter[str | None]:
        found: Counter[str | None] = Counter()
        for account in self.core.accounts.waiting():
            for flow in account.waiting():
                found[flow.adapter] += len(flow.waiting)
        return found

    def left(self, ticket: Ticket, prompt: int | None, written: int | None) -> None:
        """For Place: a request is gone from the queue or from the engine."""
        now = self.clock()
        if ticket.state is TicketState.QUEUED:
            self._places.pop(ticket, None)
            self.core.leave(ticket, now)
        elif ticket.state is TicketState.ADMITTED:
            self.core.finish_background(ticket)
            self.core.finish(ticket, now, prompt=prompt, written=written)
        self.more()

    def more(self) -> None:
        """There may be room for another one."""
        if self.core.queued:
            self._wake()

    def too_late(self, ticket: Ticket, seconds: float) -> Overloaded:
        """The error of a request that waited for so long in vain."""
        self.refused[TIMEOUT] += 1
        retry = math.ceil(self.core.retry_after(self.clock()))
        return Overloaded(
            f"the request waited {seconds:g} s for its turn, the server is overloaded; try again "
            f"in {retry} s",
            retry_after=retry,
        )

    def _wake(self) -> None:
        """Tell everybody who is admitted by now, and come back when time alone admits more."""
        now = self.clock()
        for ticket in self.core.pump(now):
            place = self._places.pop(ticket)
            assert place.future is not None
            if not place.future.done():
                place.future.set_result(None)
            self._waited(ticket.waited)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        at = self.core.wake_at(now)
        if at is not None:
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(max(0.0, at - now), self._wake)


class Place:
    """One request's place, in the queue or at the engine."""

    __slots__ = ("_admission", "_open", "future", "ticket")

    def __init__(self, admission: Admission, ticket: Ticket):
        self._admission = admission
        self._open = True
        self.ticket = ticket
        self.future: asyncio.Future[None] | None = None

    @property
    def admitted(self) -> bool:
        """Whether the request may go to the engine."""
        return self.ticket.state is TicketState.ADMITTED

    async def turn(self, timeout: float | None = None) -> None:
        """Wait for admission; raises Overloaded after `timeout` seconds (None: the limits')."""
        if self.future is None or self.admitted:
            return
        seconds = self._admission.core.limits.timeout if timeout is None else timeout
        done, _ = await asyncio.wait({self.future}, timeout=seconds)
        if not done and not self.admitted:
            raise self._admission.too_late(self.ticket, seconds)

    def first_token(self) -> None:
        """The engine has read the prompt."""
        self._admission.core.first_token(self.ticket, self._admission.clock())
        self._admission.more()

    def tokens(self, count: int) -> None:
        """So many more tokens of a streamed answer were seen."""
        self._admission.core.tokens(self.ticket, count)

    def release(self, prompt: int | None = None, written: int | None = None) -> None:
        """Nothing of the request is left here, after so many tokens as the engine counted.

        Further calls change nothing.
        """
        if self._open:
            self._open = False
            self._admission.left(self.ticket, prompt, written)


def _overloaded(full: QueueFull) -> Overloaded:
    retry = math.ceil(full.retry_after)
    whose = (
        "this tenant has as many requests waiting as it may"
        if full.of_tenant
        else ("as many requests wait as the server lets")
    )
    return Overloaded(f"{whose}; try again in {retry} s", retry_after=retry)
