"""What is known of a job: its state, how far it is, and what became of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from adapters.frozen import Frozen
from adapters.jobs.orders import Order


class JobState(StrEnum):
    """Where a job stands. `interrupted` is never stored: it is read from a lock that nobody holds.

    A job is queued, then running, then one of the others; whatever did not succeed can be resumed.
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # The work is done, and its result is beyond a quality gate that was asked for.
    REJECTED = "rejected"
    # Its process died: killed, out of memory, a power cut.
    INTERRUPTED = "interrupted"

    @property
    def living(self) -> bool:
        """Whether a process waits or works for it."""
        return self in (JobState.QUEUED, JobState.RUNNING)

    @property
    def resumable(self) -> bool:
        """Whether it can go on from what it left in its work directory."""
        return self in (JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)


class JobError(Frozen):
    """Why a job failed: `code` and sentence of an error of adapters/errors.py, or `rejected`."""

    code: str
    message: str


class JobRecord(Frozen):
    """One job. `done` of `total` parts of `step` are finished; 0 of 0 where nobody counts."""

    id: str
    kind: str
    order: Order
    state: JobState
    step: str | None
    done: int
    total: int
    actor: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    # How often a process was started for it.
    starts: int
    result: dict[str, Any] | None
    error: JobError | None
    # On the machine of the store.
    log: str


class JobLog(Frozen):
    """A part of a job's log: whole lines from `offset`, and where the next part begins."""

    text: str
    next: int = Field(description="The offset, in bytes, to ask for what comes after.")
