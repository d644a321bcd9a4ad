"""Whose request goes to an engine next: the core, without I/O, clock or threads.

Whoever uses it says what happens (`offer`, `first_token`, `tokens`, `finish`, `leave`) and when;
after anything that may make room, `pump` gives the tickets that are admitted now. The rules:

1. The tenant with the least service by its weight goes first, then its adapter with the least.
2. At most `places` sequences are at the engine; tenants below their fair share get some more.
3. Adapters in flight never exceed the slots. A request to an adapter in flight may pass one that
   waits for a slot, for `patience` seconds: then an adapter in flight has to leave.
4. A tenant has at most `prompt_tokens` being read at a time, or one prompt; half as many while
   others are about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.gateway.admission.accounts import Account, Accounts, Flow
from server.gateway.admission.limits import Limits
from server.gateway.admission.rates import CompletionRate, ReadingRate
from server.gateway.admission.slots import Slots
from server.gateway.admission.tickets import Ticket, TicketState

# A wake-up may come a rounding early; then it comes again.
_EPSILON = 1e-6


class QueueFull(Exception):
    """A ticket that found no room: `of_tenant` where the tenant's own limit was reached.

    `retry_after` is in seconds, by the rate at which requests end.
    """

    def __init__(self, retry_after: float, *, of_tenant: bool):
        super().__init__()
        self.retry_after = retry_after
        self.of_tenant = of_tenant


@dataclass(frozen=True, slots=True)
class Queued:
    """How many wait, by what holds them back."""

    place: int = 0
    slot: int = 0
    prompt: int = 0


class Scheduler:
    """Admission to one engine. Times are seconds on any one clock that does not go back."""

    def __init__(self, limits: Limits, *, slots: int | None):
        """`slots` None: the engine has none, or does not say."""
        self.limits = limits
        self.accounts = Accounts(limits.recent)
        self.slots = Slots(slots, patience=limits.patience)
        # Sequences at the engine.
        self.places = 0
        self.queued = 0
        self._admitted: dict[Ticket, Account] = {}
        self._background: set[Ticket] = set()
        # Admitted tickets whose prompt is being read.
        self._reading: dict[Ticket, None] = {}
        self._reading_rate = ReadingRate()
        self._completions = CompletionRate()

    @property
    def in_flight(self) -> int:
        """Requests at the engine, the gateway's own included."""
        return len(self._admitted) + len(self._background)

    def offer(self, ticket: Ticket, now: float) -> bool:
        """A request has come: whether it is admitted at once; otherwise it is queued.

        Raises QueueFull. One that was admitted before and comes again (its engine died) keeps its
        place in the order.
        """
        assert ticket.state in (TicketState.NEW, TicketState.DONE)
        if math.isnan(ticket.arrived):
            ticket.arrived = now
        ticket.charged, ticket.written = 0.0, 0
        account = self.accounts.arrive(ticket, now)
        flow = account.flow(ticket.adapter)
        account.predict(ticket)
        if self.queued == 0:
            self._read_so_far(now)
            if self._may_go(account, flow, ticket, now):
                self._admit(account, flow, ticket, now)
                return True
        self._put(account, flow, ticket)
        if self.queued > self.limits.queued or account.queued > self.limits.queued_per_tenant:
            of_tenant = account.queued > self.limits.queued_per_tenant
            self.leave(ticket, now)
            raise QueueFull(self.retry_after(now), of_tenant=of_tenant)
        return False

    def pump(self, now: float) -> list[Ticket]:
        """Admit what may go now; the tickets, in their order."""
        admitted: list[Ticket] = []
        self._read_so_far(now)
        while self.queued and (found := self._next(now)) is not None:
            account, flow, ticket = found
            self._take_out(account, flow, ticket)
            self._admit(account, flow, ticket, now)
            admitted.append(ticket)
        return admitted

    def leave(self, ticket: Ticket, now: float) -> None:
        """A queued request is given up: its client has gone, or its time is over."""
        assert ticket.state is TicketState.QUEUED
        account = self.accounts.of(ticket.tenant)
        self._take_out(account, account.flows[ticket.adapter], ticket)
        ticket.state = TicketState.DONE
        self.accounts.settle(account, now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """The prompt of an admitted request has been read."""
        if ticket in self._reading:
            self._reading_rate.note(ticket.cost.prompt_tokens, now - ticket.admitted)
            self._has_read(ticket)

    def tokens(self, ticket: Ticket, count: int) -> None:
        """`count` more tokens of a streamed answer were seen."""
        ticket.written += count
        account = self._admitted.get(ticket)
        # What was predicted is charged already.
        if account is not None and ticket.written > ticket.predicted:
            account.charge(ticket, ticket.cost.prompt_tokens, ticket.written)

    def finish(
        self, ticket: Ticket, now: float, *, prompt: int | None = None, written: int | None = None
    ) -> None:
        """An admitted request has left the engine, after so many tokens as the engine counts.

        Without a count the estimate stays, and of a stream what was seen. Safe to repeat.
        """
        account = self._admitted.pop(ticket, None)
        if account is None:
            return
        if written is None and ticket.cost.streams:
            written = ticket.written
        elif written is not None:
            account.learn(written, ticket.cost.places)
        account.charge(
            ticket,
            ticket.cost.prompt_tokens if prompt is None else prompt,
            ticket.predicted if written is None else written,
        )
        account.total += ticket.charged
        self._has_read(ticket, account)
        flow = account.flows[ticket.adapter]
        flow.in_flight -= 1
        if not flow.active:
            account.floor = flow.service
        account.in_flight -= 1
        account.places -= ticket.places
        self.places -= ticket.places
        if ticket.adapter is not None:
            self.slots.give_back(ticket.adapter, ticket.tenant)
        ticket.state = TicketState.DONE
        self._completions.note(now)
        self.accounts.settle(account, now)

    def engine_gone(self, now: float) -> None:
        """The engine has died: nothing is there any more. What waits, waits on."""
        for ticket in list(self._admitted):
            self.finish(ticket, now)
        for ticket in list(self._background):
            self.finish_background(ticket)

    def offer_background(self, ticket: Ticket, now: float) -> bool:
        """Something of the gateway's own, which never waits: whether it may go.

        Only while nothing is queued, a place is free, and a slot beside that one stays free.
        """
        limit = self.limits.places - (self.limits.extra if self.accounts.crowded(now) else 0)
        if self.queued or self.places + 1 > limit:
            return False
        adapter = ticket.adapter
        if adapter is not None and not self.slots.has_room(adapter, beside=1):
            return False
        ticket.places = 1
        ticket.state = TicketState.ADMITTED
        self.places += 1
        self._background.add(ticket)
        if adapter is not None:
            self.slots.take(adapter, ticket.tenant, now)
        return True

    def finish_background(self, ticket: Ticket) -> None:
        """It has left the engine. Safe to repeat."""
        if ticket not in self._background:
            return
        self._background.discard(ticket)
        ticket.state = TicketState.DONE
        self.places -= ticket.places
        if ticket.adapter is not None:
            self.slots.give_back(ticket.adapter, ticket.tenant)

    def wake_at(self, now: float) -> float | None:
        """When `pump` may admit something though nothing was said meanwhile; None: never."""
        if not self.queued:
            return None
        times = [ticket.reading_until for ticket in self._reading]
        patience = self.slots.next_patience()
        if patience is not None:
            times.append(patience)
        # Patience that is over had its effect, as far as it can have one before something ends.
        found = min((at for at in times if now < at < math.inf), default=None)
        return None if found is None else found + _EPSILON

    def retry_after(self, now: float) -> float:
        """Seconds until what is queued now is admitted, by the rate of the last ones."""
        return self._completions.seconds_for(self.queued + 1, now)

    def held_back(self, now: float) -> Queued:
        """The queue by reason: each waits for a place unless something else comes first."""
        slot = prompt = 0
        for account in self.accounts.waiting():
            for flow in account.waiting():
                if flow.adapter in self.slots.wanted:
                    slot += len(flow.waiting)
                elif not self._may_read(account, flow.waiting[0], now):
                    prompt += len(flow.waiting)
        return Queued(self.queued - slot - prompt, slot, prompt)

    def _next(self, now: float) -> tuple[Account, Flow, Ticket] | None:
        """The first in the order of fairness that may go."""
        if self.places >= self.limits.places + self.limits.extra:
            return None
        waiting = self.accounts.waiting()
        for account in waiting:
            for flow in account.waiting():
                ticket = flow.waiting[0]
                if not self._has_place(account, ticket, now, len(waiting)):
                    # Nobody passes: places go by service, or who asks for many never gets them.
                    return None
                if not self._may_read(account, ticket, now):
                    break
                if self._has_slot(account, ticket, now):
                    return account, flow, ticket
        return None

    def _may_go(self, account: Account, flow: Flow, ticket: Ticket, now: float) -> bool:
        """Where nothing else waits."""
        return (
            self._has_place(account, ticket, now, 1)
            and self._may_read(account, ticket, now)
            and self._has_slot(account, ticket, now)
        )

    def _need(self, account: Account, ticket: Ticket) -> int:
        """Places that it takes: one with many answers must not wait for all others to be gone."""
        share = self.limits.places * self.accounts.active_share(account)
        return min(ticket.cost.places, max(1, int(share)))

    def _has_place(self, account: Account, ticket: Ticket, now: float, waiting: int) -> bool:
        """`waiting`: tenants that have something waiting, this one included."""
        limits = self.limits
        need = self._need(account, ticket)
        if not self.accounts.crowded(now):
            return self.places + need <= limits.places
        share = limits.places * self.accounts.share(account, now)
        if account.places + need <= max(1.0, share):
            return self.places + need <= limits.places + limits.extra
        # Kept free for those who are about and may come; not for those who wait here, too.
        kept = limits.extra if self.accounts.about(now) > waiting else 0
        return self.places + need <= max(need, limits.places - kept)

    def _may_read(self, account: Account, ticket: Ticket, now: float) -> bool:
        limit = self.limits.prompt_tokens
        if self.accounts.crowded(now):
            # Others wait for the step that is under way, and for what is read in their own.
            limit //= 2
        return account.reading == 0 or account.reading + ticket.cost.prompt_tokens <= limit

    def _has_slot(self, account: Account, ticket: Ticket, now: float) -> bool:
        adapter, slots = ticket.adapter, self.slots
        if adapter is None or slots.count is None:
            return True
        if not self.accounts.crowded(now):
            return slots.ask(adapter, now, keep=0, at_once=False, may_go=lambda _: True)
        below = self._within_slots(account, 1, now)

        def may_go(tenants: set[str]) -> bool:
            """Those below their share keep theirs, but for others below it."""
            others = (self.accounts.find(name) for name in tenants if name != account.name)
            return below or not any(
                one is not None and self._within_slots(one, 0, now) for one in others
            )

        return slots.ask(adapter, now, keep=0 if below else 1, at_once=below, may_go=may_go)

    def _within_slots(self, account: Account, more: int, now: float) -> bool:
        share = self.slots.usable() * self.accounts.share(account, now)
        return account.held_slots() + more <= max(1.0, share)

    def _put(self, account: Account, flow: Flow, ticket: Ticket) -> None:
        ticket.state = TicketState.QUEUED
        flow.put(ticket)
        account.queued += 1
        self.queued += 1

    def _take_out(self, account: Account, flow: Flow, ticket: Ticket) -> None:
        if flow.waiting[0] is ticket:
            flow.waiting.popleft()
        else:
            flow.waiting.remove(ticket)
        account.queued -= 1
        self.queued -= 1
        adapter = flow.adapter
        if not flow.waiting and adapter is not None and adapter in self.slots.wanted:
            others = (one.flows.get(adapter) for one in self.accounts.waiting())
            if not any(one is not None and one.waiting for one in others):
                self.slots.unwanted(adapter)

    def _admit(self, account: Account, flow: Flow, ticket: Ticket, now: float) -> None:
        ticket.state = TicketState.ADMITTED
        ticket.admitted = now
        ticket.places = self._need(account, ticket)
        self._admitted[ticket] = account
        flow.in_flight += 1
        account.in_flight += 1
        account.places += ticket.places
        self.places += ticket.places
        if ticket.adapter is not None:
            self.slots.take(ticket.adapter, ticket.tenant, now)
        account.charge(ticket, ticket.cost.prompt_tokens, ticket.predicted)
        account.reading += ticket.cost.prompt_tokens
        self._reading[ticket] = None
        ticket.reading_until = math.inf
        if not ticket.cost.streams:
            # Nobody tells when its prompt was read.
            ticket.reading_until = now + self._reading_rate.seconds(ticket.cost.prompt_tokens)

    def _read_so_far(self, now: float) -> None:
        for ticket in [one for one in self._reading if one.reading_until <= now]:
            self._has_read(ticket)

    def _has_read(self, ticket: Ticket, account: Account | None = None) -> None:
        if ticket in self._reading:
            del self._reading[ticket]
            account = account or self._admitted[ticket]
            account.reading -= ticket.cost.prompt_tokens
