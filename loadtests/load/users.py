"""Locust users that speak the OpenAI API with streaming."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

from loadtests.load.order import Order
from loadtests.load.plan import TenantPlan
from loadtests.load.prompts import Prompts
from loadtests.load.records import UNFINISHED, Record
from loadtests.load.stream import Answer, Asker
from loadtests.load.turns import Turn, Turns
from loadtests.scenarios import Closed, Tenant

# Seconds after which a closed-loop user who was refused comes back: else there were only errors.
_AFTER_ERROR = 0.5
_LONGEST_BACK_OFF = 5.0


class Shared:
    """What the users of one run share: a clock, which `go` starts, and who hears of answers."""

    def __init__(self, order: Order, heard: Callable[[Record], None]) -> None:
        self.order = order
        self.prompts: Prompts = order.prompts()
        self.heard = heard
        self.started = gevent.event.Event()
        self._zero = time.monotonic()

    def go(self) -> None:
        """The users are there: 0 is now."""
        self._zero = time.monotonic()
        self.started.set()

    def clock(self) -> float:
        """Seconds from the start."""
        return time.monotonic() - self._zero


@dataclass(frozen=True)
class Member:
    """What makes a user one of a tenant's: its turns are shared with the others of it."""

    shared: Shared
    tenant: Tenant
    turns: Turns

    @property
    def closed(self) -> bool:
        return isinstance(self.tenant.load, Closed)

    @property
    def pause(self) -> float:
        return self.tenant.load.pause if isinstance(self.tenant.load, Closed) else 0.0


def members(shared: Shared) -> list[Member]:
    """One for each tenant of the scenario."""
    order = shared.order
    found = []
    for tenant in order.scenario.askers:
        plan = TenantPlan(order.scenario, tenant, order.models, order.base)
        turns = Turns(order.scenario, plan, shared.clock, gevent.sleep)
        found.append(Member(shared, tenant, turns))
    return found


class OpenAIUser(User):
    """One who asks when it is its turn. A subclass says whose `member` it is."""

    abstract = True
    member: Member
    asker: Asker | None = None

    def on_start(self) -> None:
        shared = self.member.shared
        self.asker = Asker(
            shared.order.url,
            shared.order.path,
            shared.order.headers.get(self.member.tenant.name, {}),
            shared.order.scenario.timeout,
            shared.clock,
        )

    def on_stop(self) -> None:
        if self.asker is not None:
            self.asker.close()

    def wait_time(self) -> float:
        """Seconds between an answer and the next request."""
        return self.member.pause

    @task
    def ask(self) -> None:
        """Wait for a turn and take it."""
        if self.asker is None:
            raise StopUser
        shared = self.member.shared
        shared.started.wait()
        turn = self.member.turns.next()
        if turn is None:
            raise StopUser
        body = shared.order.body(turn.item, shared.prompts)
        answer = Answer()
        # A closed-loop user's request is due when it can be sent: making its words is our time.
        due = shared.clock() if self.member.closed else turn.due
        try:
            self.asker.ask(body, answer)
        finally:
            record = _record(turn, due, answer)
            shared.heard(record)
            if record.outcome != UNFINISHED:
                _tell(self.environment, record)
        if self.member.closed and not record.ok:
            wait = _AFTER_ERROR if answer.retry_after is None else answer.retry_after
            gevent.sleep(min(max(wait, 0.05), _LONGEST_BACK_OFF))


def user_classes(shared: Shared) -> list[type[OpenAIUser]]:
    """A class of users for each tenant of the scenario, with as many as its load says."""
    classes = []
    for member in members(shared):
        inside: dict[str, Any] = {
            "member": member,
            "fixed_count": member.tenant.load.users,
            "abstract": False,
        }
        classes.append(type(f"{member.tenant.name} users", (OpenAIUser,), inside))
    return classes


def _record(turn: Turn, due: float, answer: Answer) -> Record:
    return Record(
        tenant=turn.item.tenant,
        index=turn.item.index,
        model=turn.item.model,
        due=due,
        sent=answer.sent,
        end=answer.end,
        warmup=turn.warmup,
        outcome=answer.outcome,
        error=answer.error,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        counted=answer.counted,
        chunks=tuple(answer.chunks),
        answered_by=answer.answered_by,
    )


def _tell(environment: Environment, record: Record) -> None:
    """Locust's own statistics, for its web page: the answer, and the time to its first text."""
    failure = None if record.ok else RuntimeError(f"{record.outcome}: {record.error}")
    told: dict[str, Any] = {"name": record.model, "context": {}, "exception": failure}
    # Any: Locust's events are not typed.
    fire: Any = environment.events.request.fire
    fire(
        request_type=record.tenant,
        response_time=record.total_ms,
        response_length=record.completion_tokens,
        **told,
    )
    if record.ttft_ms is not None:
        fire(
            request_type=f"{record.tenant}: first token",
            response_time=record.ttft_ms,
            response_length=0,
            **told,
        )
