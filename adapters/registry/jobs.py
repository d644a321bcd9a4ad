"""Writes to the table of jobs; every one inside a transaction of its caller."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from adapters.jobs.models import JobError, JobState
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.registry import lanes, schema
from adapters.registry.auditing import changed
from adapters.registry.rows import now

# Crockford's base 32: no letters that look like digits, and in the order of ASCII.
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
# Seconds count from 2026: six digits last for 34 years.
_EPOCH = 1_767_225_600
_TIME_DIGITS, _RANDOM_DIGITS = 6, 2

_ACTIVE = (JobState.QUEUED, JobState.RUNNING)


def new_job_id(seconds: float | None = None) -> str:
    """Eight digits of base 32: the second it was made in, then chance. They sort by time."""
    moment = int(time.time() if seconds is None else seconds) - _EPOCH
    digits = []
    for _ in range(_TIME_DIGITS):
        moment, digit = divmod(moment, 32)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits)) + "".join(
        secrets.choice(_DIGITS) for _ in range(_RANDOM_DIGITS)
    )


def add_job(
    connection: Connection, job_id: str, order: MergeOrder | EvaluateOrder, actor: str
) -> bool:
    """A new job at the end of the queue; False if the id is taken."""
    if connection.execute(select(schema.jobs.c.seq).where(_is(job_id))).first() is not None:
        return False
    ordered = order.model_dump_json()
    connection.execute(
        insert(schema.jobs).values(
            id=job_id,
            kind=order.kind,
            ordered=ordered,
            state=JobState.QUEUED,
            turn=_last_turn(connection),
            starts=1,
            cancel=0,
            done=0,
            total=0,
            actor=actor,
            created_at=now(),
        )
    )
    changed(
        connection, f"job {job_id}", None, {"state": JobState.QUEUED, "order": json.loads(ordered)}
    )
    return True


def same_job(connection: Connection, order: MergeOrder | EvaluateOrder) -> str | None:
    """The newest job with exactly this order that has not come to a result."""
    columns = schema.jobs.c
    ended = (JobState.SUCCEEDED, JobState.REJECTED)
    found = connection.execute(
        select(columns.id)
        .where(columns.ordered == order.model_dump_json(), columns.state.not_in(ended))
        .order_by(columns.seq.desc())
        .limit(1)
    ).scalar()
    return None if found is None else str(found)


def queue_again(connection: Connection, job_id: str) -> None:
    """Back to the end of the queue, to go on; what it said of its end is forgotten."""
    connection.execute(
        update(schema.jobs)
        .where(_is(job_id))
        .values(
            state=JobState.QUEUED,
            turn=_last_turn(connection),
            starts=schema.jobs.c.starts + 1,
            cancel=0,
            step=None,
            done=0,
            total=0,
            ended_at=None,
            result=None,
            error=None,
        )
    )
    changed(connection, f"job {job_id}", None, {"state": JobState.QUEUED})
    lanes.job_goes_on(connection, job_id)


def claim_turn(
    connection: Connection, job_id: str, lives: Callable[[str], bool], at_once: int
) -> bool:
    """Makes the job a running one if it is among the first `at_once` of those that live.

    The dead keep their places, which count for nothing.
    """
    columns = schema.jobs.c
    active = connection.execute(
        select(columns.id, columns.state).where(columns.state.in_(_ACTIVE)).order_by(columns.turn)
    ).all()
    others = [(row.id, row.state) for row in active if row.id != job_id and lives(row.id)]
    order = [row.id for row in active]
    assert job_id in order, "only its own process changes the state of a job that lives"
    running = sum(state == JobState.RUNNING for _, state in others)
    before = sum(
        state == JobState.QUEUED and order.index(other) < order.index(job_id)
        for other, state in others
    )
    if running + before >= at_once:
        return False
    began = func.coalesce(columns.started_at, now())
    connection.execute(
        update(schema.jobs).where(_is(job_id)).values(state=JobState.RUNNING, started_at=began)
    )
    return True


def ask_to_cancel(connection: Connection, job_id: str) -> None:
    """Its process looks at this some times a second."""
    connection.execute(update(schema.jobs).where(_is(job_id)).values(cancel=1))
    changed(connection, f"job {job_id}", None, {"cancel": True})


def finish_job(
    connection: Connection,
    job_id: str,
    state: JobState,
    *,
    result: dict[str, Any] | None = None,
    error: JobError | None = None,
) -> None:
    """What became of it; the step and the progress stay as they were."""
    assert not state.living and state is not JobState.INTERRUPTED, "how a job ends"
    connection.execute(
        update(schema.jobs)
        .where(_is(job_id))
        .values(
            state=state,
            ended_at=now(),
            result=None if result is None else json.dumps(result),
            error=None if error is None else error.model_dump_json(),
        )
    )
    failure = {} if error is None else {"error": error.message}
    changed(connection, f"job {job_id}", None, {"state": state, **failure})
    _tell_deployments(connection, job_id, state, result, error)


def problem_of(connection: Connection, job_id: str) -> str | None:
    """Why an ended job made nothing, in words; None of one that may yet, or that succeeded."""
    columns = schema.jobs.c
    row = connection.execute(select(columns.state, columns.error).where(_is(job_id))).first()
    if row is None or row.state in (*_ACTIVE, JobState.SUCCEEDED):
        return None
    error = None if row.error is None else JobError.model_validate_json(row.error)
    return _problem(JobState(row.state), error)


def _problem(state: JobState, error: JobError | None) -> str:
    return str(state) if error is None else f"{state}: {error.message}"


def _tell_deployments(
    connection: Connection,
    job_id: str,
    state: JobState,
    result: dict[str, Any] | None,
    error: JobError | None,
) -> None:
    """Those that wait for the job's model get it in the transaction that ends the job.

    So a job that is killed before, and resumed, tells them then.
    """
    made = result if state is JobState.SUCCEEDED and result and result.get("registered") else None
    model = None if made is None else str(made["digest"])
    problem = None if model is not None else _problem(state, error)
    lanes.job_ended(connection, job_id, model=model, problem=problem)


def remove_job(connection: Connection, job_id: str) -> None:
    """Forgets it."""
    connection.execute(delete(schema.jobs).where(_is(job_id)))
    changed(connection, f"job {job_id}", {"kept": True}, None)


def _last_turn(connection: Connection) -> int:
    return int(connection.execute(select(func.max(schema.jobs.c.turn))).scalar() or 0) + 1


def _is(job_id: str) -> ColumnElement[bool]:
    return schema.jobs.c.id == job_id
