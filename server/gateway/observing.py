"""What is known of a request once nothing of it is left, and who wants to hear it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from adapters.lanes.models import Route
from adapters.models import AdapterRecord, VersionRecord
from adapters.tenants import DEFAULT_TENANT
from server.gateway.routes import EngineRoute


class Role(StrEnum):
    """What a request was to its reference's route: `plain` where there is no route."""

    PLAIN = "plain"
    STABLE = "stable"
    CANARY = "canary"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Observation:
    """One ended request. Times are in seconds; `ended` is on the monotonic clock."""

    adapter: str
    # None: the base itself.
    number: int | None
    # hot, merged or base: where it was answered.
    lane: str
    role: Role
    # Route.id that it was counted under.
    route: int | None
    path: str
    # `ok` or an error's code.
    outcome: str
    ended: float
    # Before it was sent to an engine: a wait for the engine's start or for a place.
    waited: float
    # From being sent to the first event; None of an answer that came as a whole, or not at all.
    first_token: float | None
    # From being sent to the end.
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    # The answer as it came, at most ANSWER_LIMIT bytes; only where the route is watched.
    answer: bytes | None = None
    # What was asked; only where the reference has a route, and to be forgotten soon.
    asked: Answered | None = None
    tenant: str = DEFAULT_TENANT


ANSWER_LIMIT = 64 * 1024

Observer = Callable[[Observation], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """A request with a watched or shadowed route: what a copy, or a score's prompt, is made of.

    `adapter` is of the snapshot that the request was resolved in; `body` as the client sent it.
    """

    request_id: str
    reference: str
    adapter: AdapterRecord
    stable: VersionRecord
    route: Route
    role: Role
    path: EngineRoute
    body: bytes
    headers: Mapping[str, str]
