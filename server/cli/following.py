"""Following a job that goes on by itself: its progress here, and what Ctrl-C means for it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import click

from adapters.errors import AdapterctlError, Conflict, error_classes
from adapters.jobs.models import JobRecord, JobState
from adapters.jobs.orders import Order
from adapters.registry.interrupts import interrupt_deferred
from server.cli.backend import Backend
from server.cli.output import Progress, emit_json, note, one_line, progress, say
from server.cli.session import Session

T = TypeVar("T")

_INTERVAL_S = 0.2
# After a cancel: longer than the job's own grace.
_STOP_S = 25.0


def run_order(session: Session, order: Order, *, detach: bool) -> JobRecord | None:
    """Orders a job and follows it to its end; None if the user detached, which is said.

    Raises the error that the job failed with, and KeyboardInterrupt for Ctrl-C. A rejected job is
    returned: what the gate says goes to stderr, and the exit code is 1.
    """
    job, interrupted = begin(session, lambda backend: backend.submit_job(order))
    ended = None if detach else follow(session, job, interrupted=interrupted)
    if ended is None:
        if session.json:
            emit_json(job_document(session.backend().job(job.id)))
        else:
            say_detached(job)
    return ended


def begin(session: Session, order: Callable[[Backend], T]) -> tuple[T, bool]:
    """What `order` returns, and whether Ctrl-C came meanwhile.

    Between the start of a job and knowing its id it would leave the job to itself.
    """
    backend = session.backend()
    begun: T | None = None
    try:
        with nullcontext() if session.remote else interrupt_deferred():
            begun = order(backend)
    except KeyboardInterrupt:
        if begun is None:
            raise
        return begun, True
    return begun, False


def follow(session: Session, job: JobRecord, *, interrupted: bool = False) -> JobRecord | None:
    """Shows the job's progress to its end; None if the user detached. Raises as run_order does."""
    ended = _follow(session.backend(), job, interrupted=interrupted, json_mode=session.json)
    if ended is None:
        return None
    if ended.state is JobState.REJECTED and ended.error is not None:
        note(f"adapterctl: {one_line(ended.error.message)}")
        session.exit_code = 1
    else:
        _check_success(ended)
    return ended


def say_detached(job: JobRecord) -> None:
    """That the job goes on."""
    say(f"Job {job.id} goes on by itself: `adapterctl jobs show {job.id}` says how far")


def job_document(job: JobRecord) -> dict[str, Any]:
    """A job as `--json` shows it."""
    document = job.model_dump(mode="json")
    counted = {name: document.pop(name) for name in ("step", "done", "total")}
    return {**document, "progress": counted}


def _follow(
    backend: Backend, job: JobRecord, *, interrupted: bool, json_mode: bool
) -> JobRecord | None:
    """Shows the progress of a job until it has ended; None if the user detached.

    Ctrl-C on a terminal asks what to do; elsewhere, and the second time, it cancels the job.
    """
    while True:
        try:
            if interrupted:
                interrupted = False
                raise KeyboardInterrupt
            with progress(json_mode=json_mode) as shown:
                return _shown_to_the_end(backend, job, shown)
        except KeyboardInterrupt:
            choice = _asked(job)
            if choice == "d":
                return None
            if choice == "c":
                _cancel(backend, job)


def _check_success(job: JobRecord) -> None:
    if job.state is JobState.SUCCEEDED:
        return
    if job.state is JobState.FAILED and job.error is not None:
        raise _error(job.error.code, job.error.message)
    if job.state is JobState.CANCELLED:
        raise Conflict(f"job {job.id} was cancelled: the same command goes on where it stopped")
    raise AdapterctlError(
        f"the process of job {job.id} died; most likely this machine has too little free memory "
        "for it: the same command goes on where it stopped, and `adapterctl jobs logs "
        f"{job.id}` shows its last words"
    )


def _shown_to_the_end(backend: Backend, job: JobRecord, shown: Progress) -> JobRecord:
    step: str | None = None
    waiting = False
    while job.state.living:
        if job.state is JobState.QUEUED and not waiting and _others(backend, job):
            waiting = True
            shown.step(f"job {job.id} waits for its turn")
        if job.step is not None and job.step != step:
            step = job.step
            shown.step(step)
        if step is not None and job.total:
            shown.advance(job.done, job.total)
        time.sleep(_INTERVAL_S)
        job = backend.job(job.id)
    if job.step is not None and job.step != step:
        shown.step(job.step)
    return job


def _others(backend: Backend, job: JobRecord) -> bool:
    return any(other.state.living and other.id != job.id for other in backend.jobs())


def _asked(job: JobRecord) -> str:
    """`d`, `c` or `f`; `c` where there is nobody to ask, and for Ctrl-C in place of an answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "c"
    try:
        while True:
            question = (
                f"\njob {job.id}: [d]etach (it goes on), [c]ancel, or [f]ollow it further [d]: "
            )
            click.echo(question, nl=False, err=True)
            line = _line()
            answer = line.strip() or "d"
            if not line:
                return "c"
            if answer in ("d", "c", "f"):
                return answer
    except KeyboardInterrupt:
        return "c"


def _line() -> str:
    """A line from the terminal. input() loses a Ctrl-C that comes just before it waits."""
    waking, woken = os.pipe()
    os.set_blocking(woken, False)
    before = signal.set_wakeup_fd(woken)
    try:
        select.select([sys.stdin, waking], [], [])
        return sys.stdin.readline()
    finally:
        signal.set_wakeup_fd(before)
        os.close(waking)
        os.close(woken)


def _cancel(backend: Backend, job: JobRecord) -> None:
    """Ends the job; always raises KeyboardInterrupt, or what cancelling raises."""
    note(f"cancelling job {job.id}")
    try:
        job = backend.cancel_job(job.id)
    except Conflict:
        # It was quicker.
        job = backend.job(job.id)
    deadline = time.monotonic() + _STOP_S
    while job.state.living and time.monotonic() < deadline:
        time.sleep(_INTERVAL_S)
        job = backend.job(job.id)
    if job.state is JobState.SUCCEEDED:
        raise KeyboardInterrupt(f"interrupted, but job {job.id} had succeeded already")
    raise KeyboardInterrupt(
        "interrupted: nothing is half done, the same command goes on after the last finished "
        f"stage or shard (job {job.id})"
    )


def _error(code: str, message: str) -> AdapterctlError:
    for cls in error_classes():
        if cls.code == code:
            return cls(message)
    return AdapterctlError(message)
