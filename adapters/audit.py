"""The audit log: who did what to the store, from where, and what became of it.

Every method of the catalog that changes something is `audited`. What it changes is written into the
log by the transaction that changes it; what it refuses, or finds so already, by one of its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pydantic import Field

from adapters.errors import AdapterctlError, StoreError
from adapters.frozen import Frozen

OK = "ok"
# The action that lets old rows go, and the only thing that does (see the migration's triggers).
PRUNE = "audit.prune"
# Longer words of a caller are cut.
MOST_TEXT = 500


class AuditRecord(Frozen):
    """One row of the log. `before` and `after` hold what was changed, by what it is called."""

    id: int
    at: datetime
    actor: str = Field(description="Who: `key:LABEL`, a user of this machine, `canary`, …")
    key: str | None = Field(description="The id of the key that was sent.")
    action: str
    subject: str = Field(description="What it was done to: NAME:TAG, key/ID, job/ID, …")
    origin: str = Field(description="From where: an address, `cli`, `server`, `job ID`, `local`.")
    request: str | None = Field(description="The request's id.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    outcome: str = Field(description="`ok` or the code of the error.")
    message: str | None = Field(description="The error's sentence.")


class AuditFilter(Frozen):
    """Which rows; all that is said must hold. Those that are newest, at most `limit`."""

    since: datetime | None = Field(None, description="From this moment on.")
    actor: str | None = Field(None, description="An actor, or the id of a key.")
    subject: str | None = Field(
        None, description="A subject, what begins with it and a colon, or a pattern with *."
    )
    action: str | None = Field(None, description="An action, or a pattern with *.")
    request: str | None = Field(None, description="The id of a request.")
    before: int | None = Field(None, ge=1, description="Only rows with lower ids: the next page.")
    limit: int = Field(100, ge=1, le=10_000)


@dataclass(slots=True)
class Origin:
    """From where actions come: one for a process, and one for each request to the admin API.

    `actor` None: whom the catalog's caller names. `rows` counts what was written for it.
    """

    place: str
    actor: str | None = None
    key: str | None = None
    request: str | None = None
    rows: int = 0

    def document(self) -> dict[str, str | None]:
        """For another process that acts for this one."""
        return {
            "place": self.place,
            "actor": self.actor,
            "key": self.key,
            "request": self.request,
        }


@dataclass(slots=True)
class Act:
    """One action while it is done."""

    action: str
    subject: str
    actor: str
    origin: Origin
    rows: int = 0

    def wrote(self) -> None:
        """A row about it is in the log."""
        self.rows += 1
        self.origin.rows += 1

    @property
    def who(self) -> str:
        """The actor, as far as anybody knows."""
        return self.origin.actor or self.actor


# Both follow what is done, also into the threads that do it for an event loop.
_ORIGIN: ContextVar[Origin | None] = ContextVar("audit_origin", default=None)
_ACT: ContextVar[Act | None] = ContextVar("audit_act", default=None)


def coming_from(origin: Origin) -> None:
    """What this task does from here on comes from there, whatever its catalog says."""
    _ORIGIN.set(origin)


def current_origin() -> Origin | None:
    """What `coming_from` was told in this task."""
    return _ORIGIN.get()


def current_act() -> Act | None:
    """The innermost audited action that is being done."""
    return _ACT.get()


@contextmanager
def acting(act: Act) -> Iterator[None]:
    """What is changed inside belongs to the act."""
    token = _ACT.set(act)
    try:
        yield
    finally:
        _ACT.reset(token)


class Audited(Protocol):
    """Whose methods can be audited: a catalog."""

    origin: Origin

    def note(self, act: Act, outcome: str = OK, message: str | None = None) -> None:
        """Writes a row of its own."""


C = TypeVar("C", bound=Audited)
P = ParamSpec("P")
R = TypeVar("R")
Subject = str | Callable[[Mapping[str, Any]], str]


def audited(
    action: str, subject: Subject = ""
) -> Callable[[Callable[Concatenate[C, P], R]], Callable[Concatenate[C, P], R]]:
    """Marks a catalog's method as an action of that name.

    `subject` is the name of the argument that says what it is done to, or makes that from the
    arguments; "": what is changed first. A dry run is no action.
    """

    def decorate(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def wrapper(self: C, /, *args: P.args, **keywords: P.kwargs) -> R:
            bound = signature.bind(self, *args, **keywords)
            bound.apply_defaults()
            given = bound.arguments
            if given.get("dry_run"):
                return method(self, *args, **keywords)
            origin = current_origin() or self.origin
            act = Act(action, _subject(subject, given), given.get("actor") or "local", origin)
            try:
                with acting(act):
                    answer = method(self, *args, **keywords)
            except StoreError:
                raise  # What cannot be written into cannot be told either.
            except AdapterctlError as error:
                self.note(act, error.code, error.message)
                raise
            if not act.rows:
                self.note(act)
            return answer

        wrapper.__dict__["audited"] = action
        return wrapper

    return decorate


def _subject(subject: Subject, given: Mapping[str, Any]) -> str:
    if callable(subject):
        return subject(given)
    return str(given[subject]) if subject and given[subject] is not None else ""
