"""An engine in virtual time behind the real scheduler: what clients would see, to the tick.

A step reads every new prompt whole and writes one token for each running answer, as vLLM does; it
takes `fixed` + `per_stream` · answers + `per_prompt_token` · tokens read. The figures are those of
SmolLM2-135M on two cores. Adapters beyond the slots would wait inside: here that is a failure.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.gateway.admission.scheduler import Scheduler
from server.gateway.admission.tickets import Cost, Ticket

# What a user asks for next: an adapter (None: the base), the prompt's tokens, the answer's.
Asks = Iterator[tuple[str | None, int, int]]


@dataclass(slots=True)
class Answer:
    """One request and what became of it; times in virtual seconds."""

    ticket: Ticket
    user: Asks
    think: float
    left: int
    asked: float
    first: float | None = None
    ended: float | None = None


@dataclass
class Simulation:
    """Users in a closed loop: each asks again `think` seconds after its answer has ended."""

    core: Scheduler
    fixed: float = 0.03
    per_stream: float = 0.0012
    per_prompt_token: float = 0.0004
    # What it takes to bring another adapter into a slot; the batch waits.
    per_switch: float = 0.02
    now: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = itertools.count()
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._of: dict[Ticket, Answer] = {}
        self._running: list[Answer] = []
        self._new: list[Answer] = []
        self._slots: list[str] = []

    def user(
        self,
        tenant: str,
        asks: Asks,
        *,
        begin: float = 0.0,
        think: float = 0.0,
        weight: float = 1.0,
    ) -> None:
        """One more user, from `begin` on, until its `asks` end."""
        self._at(begin, lambda: self._ask(tenant, asks, think, weight))

    def run(self, until: float) -> None:
        """Let virtual time pass."""
        while self.now < until:
            while self._coming and self._coming[0][0] <= self.now:
                heapq.heappop(self._coming)[2]()
            self._admit()
            if self._running or self._new:
                self._step()
            elif self._coming:
                self.now = max(self.now, self._coming[0][0])
            else:
                wake = self.core.wake_at(self.now)
                assert wake is not None or not self.core.queued, "nothing would ever go on"
                self.now = until if wake is None else wake

    def of(self, tenant: str, *, since: float = 0.0) -> list[Answer]:
        """Answers of a tenant's requests that came at `since` or later and have begun."""
        return [
            one
            for one in self.answers
            if one.ticket.tenant == tenant and one.asked >= since and one.first is not None
        ]

    def tokens(self, since: float) -> dict[str, int]:
        """Tokens written by tenant, of the answers that ended since then."""
        found: dict[str, int] = defaultdict(int)
        for one in self.answers:
            if one.ended is not None and one.ended >= since:
                found[one.ticket.tenant] += one.ticket.written
        return found

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._order), what))

    def _ask(self, tenant: str, asks: Asks, think: float, weight: float) -> None:
        wanted = next(asks, None)
        if wanted is None:
            return
        adapter, prompt, written = wanted
        ticket = Ticket(tenant, adapter, Cost(prompt, written, 1, True), weight)
        answer = Answer(ticket, asks, think, written, self.now)
        self.answers.append(answer)
        self._of[ticket] = answer
        if self.core.offer(ticket, self.now):
            self._new.append(answer)

    def _admit(self) -> None:
        self._new += [self._of[ticket] for ticket in self.core.pump(self.now)]

    def _step(self) -> None:
        new, self._new = self._new, []
        self._running += new
        switches = self._into_slots()
        read = sum(one.ticket.cost.prompt_tokens for one in new)
        self.now += (
            self.fixed
            + self.per_stream * len(self._running)
            + self.per_prompt_token * read
            + self.per_switch * switches
        )
        running, self._running = self._running, []
        for one in running:
            if one.first is None:
                one.first = self.now
                self.core.first_token(one.ticket, self.now)
            self.core.tokens(one.ticket, 1)
            one.left -= 1
            if one.left:
                self._running.append(one)
            else:
                self._end(one)

    def _into_slots(self) -> int:
        count = self.core.slots.count
        needed = {one.ticket.adapter for one in self._running if one.ticket.adapter is not None}
        if count is None:
            return 0
        assert len(needed) <= count, "they would wait inside the engine"
        missing = needed - set(self._slots)
        # Used longest ago goes first.
        kept = [one for one in self._slots if one in needed]
        others = [one for one in self._slots if one not in needed]
        self._slots = [*others, *kept, *sorted(missing)][-count:]
        return len(missing)

    def _end(self, one: Answer) -> None:
        one.ended = self.now
        ticket = one.ticket
        self.core.finish(ticket, self.now, prompt=ticket.cost.prompt_tokens, written=ticket.written)
        again = one.user
        self._at(
            self.now + one.think,
            lambda: self._ask(ticket.tenant, again, one.think, ticket.weight),
        )
