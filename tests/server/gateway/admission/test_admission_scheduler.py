"""The scheduler's books: whatever comes in whatever order, nothing leaks and no limit is broken."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from server.gateway.admission.limits import Limits
from server.gateway.admission.scheduler import QueueFull, Scheduler
from server.gateway.admission.tickets import Cost, Ticket, TicketState

TENANTS = st.sampled_from(["a", "b", "c"])
ADAPTERS = st.sampled_from([None, "p", "q", "r", "s", "t", "u"])
COSTS = st.builds(
    Cost,
    prompt_tokens=st.integers(1, 400),
    max_tokens=st.none() | st.integers(1, 200),
    places=st.integers(1, 9),
    streams=st.booleans(),
)


def ticket(
    tenant: str = "a",
    adapter: str | None = None,
    *,
    places: int = 1,
    prompt: int = 10,
    weight: float = 1.0,
    written: int = 10,
) -> Ticket:
    cost = Cost(prompt_tokens=prompt, max_tokens=written, places=places, streams=True)
    return Ticket(tenant, adapter, cost, weight)


class Books(RuleBasedStateMachine):
    """Every interleaving of arrivals, admissions, tokens, ends, hang-ups and deaths."""

    @initialize(
        places=st.integers(1, 6),
        slots=st.none() | st.integers(1, 4),
        queued=st.integers(0, 12),
        pinned=st.frozensets(st.sampled_from(["p", "q"])),
    )
    def begin(self, places: int, slots: int | None, queued: int, pinned: frozenset[str]) -> None:
        limits = Limits(
            places=places, prompt_tokens=300, queued=queued, queued_per_tenant=8, patience=2.0
        )
        self.core = Scheduler(limits, slots=slots)
        if slots is not None:
            self.core.slots.pinned = pinned if len(pinned) < slots else frozenset()
        self.now = 0.0
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.background: list[Ticket] = []

    @rule(tenant=TENANTS, adapter=ADAPTERS, cost=COSTS, weight=st.sampled_from([0.5, 1.0, 4.0]))
    def arrive(self, tenant: str, adapter: str | None, cost: Cost, weight: float) -> None:
        one = Ticket(tenant, adapter, cost, weight)
        try:
            admitted = self.core.offer(one, self.now)
        except QueueFull as full:
            assert 1 <= full.retry_after <= 60
            assert one.state is TicketState.DONE
            return
        (self.running if admitted else self.waiting).append(one)

    @rule(adapter=ADAPTERS)
    def arrive_in_the_background(self, adapter: str | None) -> None:
        one = Ticket("", adapter, Cost())
        if self.core.offer_background(one, self.now):
            assert not self.waiting
            self.background.append(one)

    @rule(seconds=st.floats(0.001, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def pump(self) -> None:
        for one in self.core.pump(self.now):
            self.waiting.remove(one)
            self.running.append(one)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.core.first_token(one, self.now)
        self.core.tokens(one, data.draw(st.integers(0, 50)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        counted = data.draw(st.none() | st.integers(0, 300))
        self.core.finish(one, self.now, prompt=counted, written=counted)
        self.core.finish(one, self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        self.running.remove(one)
        self.core.finish(one, self.now)
        try:
            admitted = self.core.offer(one, self.now)
        except QueueFull:
            return
        (self.running if admitted else self.waiting).append(one)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(one)
        self.core.leave(one, self.now)

    @precondition(lambda self: self.background)
    @rule()
    def end_in_the_background(self) -> None:
        self.core.finish_background(self.background.pop())

    @rule()
    def die(self) -> None:
        self.core.engine_gone(self.now)
        assert self.core.places == self.core.in_flight == 0
        self.running.clear()
        self.background.clear()

    @invariant()
    def books_are_right(self) -> None:
        core, limits = self.core, self.core.limits
        at_engine = [*self.running, *self.background]
        assert core.queued == len(self.waiting) <= max(limits.queued, 0)
        assert core.in_flight == len(at_engine)
        assert core.places == sum(one.places for one in at_engine)
        assert core.places <= limits.places + limits.extra
        adapters = {one.adapter for one in at_engine} - {None}
        assert core.slots.in_flight == len(adapters)
        if core.slots.count is not None:
            assert len(adapters - core.slots.pinned) <= core.slots.usable()
        for account in core.accounts.known():
            own = [one for one in self.running if one.tenant == account.name]
            assert account.in_flight == len(own)
            assert account.places == sum(one.places for one in own)
            assert account.queued == sum(one.tenant == account.name for one in self.waiting)
            assert account.reading >= 0
        held = core.held_back(self.now)
        assert held.place + held.slot + held.prompt == core.queued
        assert min(held.place, held.slot, held.prompt) >= 0

    @invariant()
    def something_goes_on(self) -> None:
        """Nothing waits for nothing: with an idle engine the queue is empty after a pump."""
        if not self.running and not self.background and self.waiting:
            self.pump()
            assert self.running

    def teardown(self) -> None:
        """However it stands, everything can be let go of, and nothing is left."""
        if not hasattr(self, "core"):
            return
        for one in self.background:
            self.core.finish_background(one)
        for _ in range(10_000):
            self.pump()
            if not self.running:
                break
            self.core.finish(self.running.pop(), self.now)
        assert not self.waiting
        core = self.core
        assert core.queued == core.in_flight == core.places == core.slots.in_flight == 0
        assert not core.slots.wanted
        assert not core.slots.leaving
        assert not any(
            account.active or account.reading or any(f.active for f in account.flows.values())
            for account in core.accounts.known()
        )
        assert core.wake_at(self.now) is None


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_half_as_many_prompts_are_read_at_once_while_others_are_about() -> None:
    core = Scheduler(Limits(prompt_tokens=400, recent=60), slots=None)
    reading = [ticket("a", prompt=100) for _ in range(4)]
    assert [core.offer(one, 0) for one in reading] == [True] * 4
    waiting = [ticket("a", prompt=100) for _ in range(6)]
    assert [core.offer(one, 0) for one in waiting] == [False] * 6
    other = ticket("b", prompt=100)
    assert not core.offer(other, 1)  # Something waits already: all go by their order.
    assert core.pump(1) == [other]
    for one in reading[:2]:
        core.first_token(one, 2)
    assert core.pump(2) == []
    core.first_token(reading[2], 3)
    assert core.pump(3) == waiting[:1]
    assert core.held_back(3).prompt == 5
    # However long one is, it is read once nothing else of its tenant is.
    long = ticket("c", prompt=900)
    assert not core.offer(long, 4)
    assert core.pump(4) == [long]


def test_all_prompts_are_read_at_once_when_the_others_are_gone() -> None:
    core = Scheduler(Limits(prompt_tokens=400, recent=60), slots=None)
    other = ticket("b")
    assert core.offer(other, 0)
    core.finish(other, 1)
    first = [ticket("a", prompt=100) for _ in range(4)]
    assert [core.offer(one, 2) for one in first] == [True, True, False, False]
    assert core.pump(60.5) == []
    assert core.pump(62) == first[2:]
