"""Who got how much: a virtual token counter for each tenant, and for each adapter of a tenant.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithms 2 and 4: the one
with the least service, divided by its weight, goes first; tokens read and written are charged; who
comes back from idle is lifted to the least of those who are active, so that nobody saves up.
Where it is another here, and why: docs/adr/0023-fair-admission-in-the-gateway.md.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from server.gateway.admission.tickets import READ_WEIGHT, WRITTEN_WEIGHT, Ticket

# Tokens of an answer before anything is known of a tenant's, and how fast that follows them.
_TYPICAL_ANSWER = 128.0
_FOLLOW = 0.1
# Tenants that are remembered, and adapters of each. One that is forgotten begins at the floor.
MOST_ACCOUNTS = 1000
_MOST_FLOWS = 500


@dataclass(slots=True)
class Flow:
    """One tenant's requests to one adapter (None: the base)."""

    adapter: str | None
    service: float = 0.0
    waiting: deque[Ticket] = field(default_factory=deque)
    in_flight: int = 0

    @property
    def active(self) -> bool:
        """Whether it has anything that waits or is answered."""
        return self.in_flight > 0 or bool(self.waiting)

    def put(self, ticket: Ticket) -> None:
        """Queue it by the order of arrival: one that is offered once more goes to its old place."""
        behind: list[Ticket] = []
        while self.waiting and self.waiting[-1].arrived > ticket.arrived:
            behind.append(self.waiting.pop())
        self.waiting.append(ticket)
        self.waiting.extend(reversed(behind))


@dataclass(slots=True)
class Account:
    """One tenant. `service` is its virtual counter: units of service divided by its weight."""

    name: str
    weight: float = 1.0
    service: float = 0.0
    # Units of all requests that have ended, never lifted: for metrics.
    total: float = 0.0
    flows: dict[str | None, Flow] = field(default_factory=dict)
    queued: int = 0
    in_flight: int = 0
    places: int = 0
    # Prompt tokens that the engine reads now.
    reading: int = 0
    typical: float = _TYPICAL_ANSWER
    seen: float = 0.0
    # The counter of the flow that became idle last.
    floor: float = 0.0

    @property
    def active(self) -> bool:
        """Whether it has anything that waits or is answered."""
        return self.queued > 0 or self.in_flight > 0

    def flow(self, adapter: str | None) -> Flow:
        """The flow, lifted if it comes back from idle."""
        found = self.flows.get(adapter)
        if found is None:
            self._forget()
            found = self.flows[adapter] = Flow(adapter)
        if not found.active:
            least = min((one.service for one in self.flows.values() if one.active), default=None)
            found.service = max(found.service, self.floor if least is None else least)
        return found

    def waiting(self) -> Iterable[Flow]:
        """Flows that have something waiting, the one that goes first before the others."""
        if len(self.flows) == 1:
            return [flow for flow in self.flows.values() if flow.waiting]
        found = [flow for flow in self.flows.values() if flow.waiting]
        found.sort(key=lambda flow: (flow.service, flow.waiting[0].arrived))
        return found

    def held_slots(self) -> int:
        """Distinct adapters it has at the engine."""
        return sum(flow.in_flight > 0 for flow in self.flows.values() if flow.adapter is not None)

    def predict(self, ticket: Ticket) -> None:
        """How much it may write, by what this tenant's answers were like."""
        limit = ticket.cost.max_tokens
        each = self.typical if limit is None else min(self.typical, limit)
        ticket.predicted = max(1, round(each * ticket.cost.places))

    def charge(self, ticket: Ticket, prompt: int, written: int) -> None:
        """Bring what is charged for a request up, or down, to these tokens."""
        units = READ_WEIGHT * prompt + WRITTEN_WEIGHT * written
        more = units - ticket.charged
        ticket.charged = units
        self.service += more / self.weight
        flow = self.flows.get(ticket.adapter)
        if flow is not None:
            flow.service += more

    def learn(self, written: int, places: int) -> None:
        """An answer of this tenant had so many tokens."""
        self.typical += _FOLLOW * (written / max(1, places) - self.typical)

    def _forget(self) -> None:
        while len(self.flows) >= _MOST_FLOWS:
            idle = next((name for name, flow in self.flows.items() if not flow.active), None)
            if idle is None:
                return
            del self.flows[idle]


class Accounts:
    """All tenants of one engine."""

    def __init__(self, recent: float):
        """`recent`: seconds after its last request for which a tenant counts as being about."""
        self._recent_for = recent
        self._known: OrderedDict[str, Account] = OrderedDict()
        self._recent: OrderedDict[str, Account] = OrderedDict()
        self._active: dict[str, Account] = {}
        self._floor = 0.0

    def known(self) -> Iterable[Account]:
        """Every tenant that is remembered."""
        return self._known.values()

    def waiting(self) -> list[Account]:
        """Tenants that have something waiting, the one that goes first before the others."""
        found = [account for account in self._active.values() if account.queued]
        if len(found) > 1:
            found.sort(key=lambda one: (one.service, one.places / one.weight))
        return found

    def of(self, name: str) -> Account:
        """An account that is there: its tenant has something waiting or being answered."""
        return self._known[name]

    def find(self, name: str) -> Account | None:
        """An account; None of who is not known, as the gateway's own requests."""
        return self._known.get(name)

    def arrive(self, ticket: Ticket, now: float) -> Account:
        """The account of a ticket, lifted if its tenant comes back from idle."""
        account = self._known.get(ticket.tenant)
        if account is None:
            self._forget()
            account = self._known[ticket.tenant] = Account(ticket.tenant)
        if not account.active:
            least = min((one.service for one in self._active.values()), default=self._floor)
            account.service = max(account.service, least)
            self._active[account.name] = account
        account.weight = ticket.weight
        self._touch(account, now)
        return account

    def settle(self, account: Account, now: float) -> None:
        """Something of it has ended: idle if that was the last."""
        self._touch(account, now)
        if not account.active and self._active.pop(account.name, None) is not None:
            self._floor = account.service

    def crowded(self, now: float) -> bool:
        """Whether more than one tenant is about."""
        return self.about(now) > 1

    def about(self, now: float) -> int:
        """Tenants that had a request lately."""
        self._expire(now)
        return len(self._recent)

    def share(self, account: Account, now: float) -> float:
        """Its part, from 0 to 1, among all that are about."""
        self._expire(now)
        return account.weight / sum(one.weight for one in self._recent.values())

    def active_share(self, account: Account) -> float:
        """Its part among those who have something waiting or being answered."""
        return account.weight / sum(one.weight for one in self._active.values())

    def _touch(self, account: Account, now: float) -> None:
        account.seen = now
        self._recent[account.name] = account
        self._recent.move_to_end(account.name)
        self._known.move_to_end(account.name)

    def _expire(self, now: float) -> None:
        while self._recent:
            first = next(iter(self._recent.values()))
            if now - first.seen < self._recent_for:
                return
            if first.active:
                self._touch(first, now)
            else:
                del self._recent[first.name]

    def _forget(self) -> None:
        if len(self._known) < MOST_ACCOUNTS:
            return
        # The one that is idle longest.
        idle = next((one for one in self._known.values() if not one.active), None)
        if idle is not None:
            del self._known[idle.name]
            self._recent.pop(idle.name, None)
