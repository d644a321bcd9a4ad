"""Locust users that speak the OpenAI API with streaming."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser
from locust.user.wait_time import constant

from loadtests.load.order import Order
from loadtests.load.plan import TenantPlan
from loadtests.load.prompts import Prompts
from loadtests.load.records import Record
from loadtests.load.stream import Answer, Asker
from loadtests.load.turns import Turn, Turns
from loadtests.scenarios import Closed

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


class OpenAIUser(User):
    """One who asks when it is its turn. Subclasses (`user_classes`) belong to a tenant."""

    abstract = True
    shared: ClassVar[Shared]
    turns: ClassVar[Turns]
    tenant: ClassVar[str]
    back_off: ClassVar[bool]

    def on_start(self) -> None:
        order = self.shared.order
        self.asker = Asker(
            order.url,
            order.path,
            order.headers.get(self.tenant, {}),
            order.scenario.timeout,
            self.shared.clock,
        )

    def on_stop(self) -> None:
        self.asker.close()

    @task
    def ask(self) -> None:
        """Wait for a turn and take it."""
        self.shared.started.wait()
        turn = self.turns.next()
        if turn is None:
            raise StopUser
        body = self.shared.order.body(turn.item, self.shared.prompts)
        answer = Answer()
        # A closed-loop user's request is due when it can be sent: making its words is our time.
        due = self.shared.clock() if self.back_off else turn.due
        try:
            self.asker.ask(body, answer)
        finally:
            record = _record(turn, due, answer)
            self.shared.heard(record)
            _tell(self.environment, record)
        if self.back_off and not record.ok:
            wait = _AFTER_ERROR if answer.retry_after is None else answer.retry_after
            gevent.sleep(min(max(wait, 0.05), _LONGEST_BACK_OFF))


def user_classes(
    shared: Shared, models: tuple[str, ...], base: str | None
) -> list[type[OpenAIUser]]:
    """A class of users for each tenant of the scenario, with as many as its load says."""
    scenario = shared.order.scenario
    classes = []
    for tenant in scenario.askers:
        plan = TenantPlan(scenario, tenant, models, base)
        closed = isinstance(tenant.load, Closed)
        members: dict[str, Any] = {
            "shared": shared,
            "tenant": tenant.name,
            "turns": Turns(scenario, plan, shared.clock, gevent.sleep),
            "back_off": closed,
            "fixed_count": tenant.load.users,
            "wait_time": constant(tenant.load.pause if isinstance(tenant.load, Closed) else 0),
            "host": shared.order.url,
            "abstract": False,
        }
        classes.append(type(f"{tenant.name} users", (OpenAIUser,), members))
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
