"""jobs: what merges and the like are doing, and what became of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click

from adapters.jobs.models import JobRecord
from server.cli.complete import job_ids
from server.cli.following import job_document
from server.cli.options import Command, Group
from server.cli.output import clean, emit_json, fields, local_time, say, table
from server.cli.session import Session, pass_session

JOB_COMMANDS = {
    "ls": "server.cli.commands.jobs:ls",
    "show": "server.cli.commands.jobs:show",
    "logs": "server.cli.commands.jobs:logs",
    "cancel": "server.cli.commands.jobs:cancel",
    "resume": "server.cli.commands.jobs:resume",
    "rm": "server.cli.commands.jobs:rm",
}
_FOLLOW_INTERVAL_S = 0.3
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


@click.group(cls=Group, table=JOB_COMMANDS, invoke_without_command=True)
@pass_session
@click.pass_context
def jobs(context: click.Context, session: Session) -> None:
    """Long work: merges and the like, each in a process of its own.

    Without a subcommand: list them. An ID may be cut as far as it stays the only one.
    """
    if context.invoked_subcommand is None:
        _list(session)


@click.command(cls=Command)
@pass_session
def ls(session: Session) -> None:
    """List the jobs, the oldest first."""
    _list(session)


@click.command(cls=Command)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@pass_session
def show(session: Session, job_id: str) -> None:
    """Show one job: its order, how far it is, what became of it."""
    job = session.backend().job(job_id)
    if session.json:
        emit_json(job_document(job))
        return
    say(f"Job {job.id}: {job.kind} {clean(job.order.reference)}")
    fields(
        [
            ("state", job.state),
            *([("error", job.error.message)] if job.error else []),
            *([("step", job.step)] if job.step else []),
            *([("progress", _progress(job))] if job.total else []),
            ("ordered", f"{local_time(job.created_at)} by {job.actor}"),
            *([("started", local_time(job.started_at))] if job.started_at else []),
            *([("ended", local_time(job.ended_at))] if job.ended_at else []),
            *([("processes", str(job.starts))] if job.starts > 1 else []),
            *_results(job),
            ("log", job.log),
            *(
                (name, str(value))
                for name, value in job.order.model_dump(mode="json", exclude_defaults=True).items()
                if name != "reference"
            ),
        ]
    )


@click.command(cls=Command)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@pass_session
def logs(session: Session, job_id: str, follow: bool) -> None:
    """Print what a job and its tools said.

    Ctrl-C ends the printing, not the job. With --json one document, when all is read.
    """
    backend = session.backend()
    job, offset, text = backend.job(job_id), 0, []
    while True:
        # Before the log: what is written after that comes with another round.
        living = follow and backend.job(job.id).state.living
        part = backend.job_log(job.id, offset)
        if part.next > offset:
            offset = part.next
            text.append(part.text)
            if not session.json:
                for line in text.pop().splitlines():
                    say(clean(line))
        elif not living:
            break
        else:
            time.sleep(_FOLLOW_INTERVAL_S)
    if session.json:
        emit_json({"id": job.id, "log": "".join(text)})


@click.command(cls=Command)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@pass_session
def cancel(session: Session, job_id: str) -> None:
    """End a job within seconds; what it has finished is kept for `resume`."""
    job = session.backend().cancel_job(job_id)
    if session.json:
        emit_json(job_document(job))
    elif job.state.living:
        say(f"Job {job.id} was told to end.")
    else:
        say(f"Job {job.id} is {job.state}.")


@click.command(cls=Command)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@pass_session
def resume(session: Session, job_id: str) -> None:
    """Let an interrupted, failed or cancelled job go on where it stopped."""
    job = session.backend().resume_job(job_id)
    if session.json:
        emit_json(job_document(job))
    else:
        say(f"Job {job.id} goes on: `adapterctl jobs logs {job.id} --follow` shows how")


@click.command(cls=Command)
@click.argument("job_id", metavar="ID", shell_complete=job_ids)
@pass_session
def rm(session: Session, job_id: str) -> None:
    """Forget a job that has ended, and remove its log and what it left; not its result."""
    job = session.backend().rm_job(job_id)
    if session.json:
        emit_json({"removed": job.id})
    else:
        say(f"Removed job {job.id}")


def _results(job: JobRecord) -> list[tuple[str, str]]:
    """Where what it made lies, what a gate refused too, and where the report is."""
    found = job.result or {}
    places = (("path", "path"), ("quality_report", "report"), ("report", "report"))
    return [(name, found[key]) for key, name in places if isinstance(found.get(key), str)]


def _list(session: Session) -> None:
    found = session.backend().jobs()
    if session.json:
        emit_json([job_document(job) for job in found])
    elif found:
        table(
            ("id", "kind", "reference", "state", "progress", "age"),
            [
                (job.id, job.kind, job.order.reference, job.state, _progress(job), _age(job))
                for job in found
            ],
        )
    else:
        say("No job yet. `adapterctl merge REF` makes one.")


def _progress(job: JobRecord) -> str:
    return f"{job.done * 100 // job.total} %" if job.total else "-"


def _age(job: JobRecord) -> str:
    seconds = max(0, int((datetime.now(UTC) - job.created_at).total_seconds()))
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
