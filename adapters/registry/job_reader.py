"""Reads of the table of jobs, through the standard library as in reader.py."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

from pydantic import ValidationError

from adapters.errors import StoreDamaged
from adapters.jobs.models import JobRecord
from adapters.store.job_files import LOG_NAME, job_lives
from adapters.store.layout import StoreLayout

_COLUMNS = (
    "id, kind, ordered, state, step, done, total, actor, created_at, started_at, ended_at, "
    "starts, result, error"
)


def load_jobs(
    connection: sqlite3.Connection, layout: StoreLayout, *, prefix: str = ""
) -> list[JobRecord]:
    """The jobs whose id begins with `prefix`, the oldest first, in the state that is stored."""
    rows = connection.execute(
        # No LIKE: the prefix comes from users.
        f"SELECT {_COLUMNS} FROM jobs WHERE substr(id, 1, ?) = ? ORDER BY seq",
        (len(prefix), prefix),
    )
    return [_record(row, layout) for row in rows]


def load_ids(connection: sqlite3.Connection) -> list[str]:
    """The id of every job."""
    return [str(row[0]) for row in connection.execute("SELECT id FROM jobs")]


def cancel_asked(connection: sqlite3.Connection, job_id: str) -> bool:
    """Whether somebody wants the job to end; a job that was removed is wanted by nobody."""
    row = connection.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row is None or bool(row[0])


def dead(layout: StoreLayout, jobs: Iterable[JobRecord]) -> set[str]:
    """The ids of those that should live and whose lock nobody holds."""
    return {job.id for job in jobs if job.state.living and not job_lives(layout, job.id)}


def _record(row: tuple[str | int | None, ...], layout: StoreLayout) -> JobRecord:
    job_id, kind, ordered, *rest, result, error = row
    names = (
        *("state", "step", "done", "total", "actor", "created_at", "started_at", "ended_at"),
        "starts",
    )
    try:
        return JobRecord.model_validate(
            {
                "id": job_id,
                "kind": kind,
                "order": json.loads(str(ordered)),
                **dict(zip(names, rest, strict=True)),
                "result": None if result is None else json.loads(str(result)),
                "error": None if error is None else json.loads(str(error)),
                "log": str(layout.job(str(job_id)) / LOG_NAME),
            }
        )
    except (ValidationError, ValueError):
        raise StoreDamaged(
            f"the registry's entry of job '{job_id}' cannot be read: it is damaged, or a newer "
            "adapterctl made it; upgrade, or put back a copy of registry.db (see docs/backup.md)"
        ) from None
