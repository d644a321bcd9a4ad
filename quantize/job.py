"""The process of one job: `python -P -m quantize.job STORE ID [LOCK]`.

Waits for its turn, does what was ordered, and notes in the registry what became of it. LOCK is the
descriptor of the job's lock if whoever started the process holds it already; the lock lasts as
long as the process and is how everybody else knows that it lives. SIGINT and SIGTERM cancel the
job. What is printed goes to the job's log, where the starter has led stdout and stderr.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from adapters.audit import Origin
from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, Conflict, UsageError
from adapters.jobs.launching import AT_ONCE_VARIABLE
from adapters.jobs.models import JobError, JobRecord, JobState
from adapters.registry.heavy_import import kept_from_collecting
from adapters.registry.interrupts import interrupt_deferred
from adapters.store.job_files import WORK_NAME, take_job_lock
from quantize.jobs.context import JobContext, Rejected
from quantize.jobs.telling import Teller

_TURN_INTERVAL_S = 0.25


class _Outcome(NamedTuple):
    state: JobState
    result: dict[str, object] | None = None
    error: JobError | None = None


def main() -> None:
    """Run the job that the arguments name; what became of it is in the registry."""
    root, job_id, *lock = sys.argv[1:]
    logging.basicConfig(stream=sys.stderr)
    # What a library prints stands in the log when it was printed, and survives kill -9.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _stop_once()
    try:
        run(Path(root), job_id, int(lock[0]) if lock else None)
    except KeyboardInterrupt:
        if not lock:
            raise  # it may be another's
        # So early that there was no work to break off.
        with Catalog.open(Path(root)) as catalog:
            catalog.origin = Origin(f"job {job_id}")
            catalog.finish_job(job_id, JobState.CANCELLED)


def run(root: Path, job_id: str, lock: int | None = None) -> None:
    """One job from its place in the queue to its end. Raises Conflict if it lives already."""
    with Catalog.open(root) as catalog:
        job = catalog.job(job_id)
        catalog.origin = Origin(f"job {job.id}", job.actor)
        if lock is None:
            lock = take_job_lock(catalog.layout, job.id)
            if lock is None:
                raise Conflict(f"job {job.id} has a process already")
        # Not for what this process starts: a tool that outlived it would look like the job.
        os.set_inheritable(lock, False)
        outcome = _outcome(catalog, job)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if outcome.state is JobState.SUCCEEDED:
            shutil.rmtree(catalog.layout.job(job.id) / WORK_NAME, ignore_errors=True)
        catalog.finish_job(job.id, outcome.state, result=outcome.result, error=outcome.error)
        # At once: torch takes a while to go, and who resumes the job would be told that it lives.
        os.close(lock)


def _outcome(catalog: Catalog, job: JobRecord) -> _Outcome:
    """Does the work; whatever happens to it becomes a state."""

    def give_up() -> None:
        try:
            catalog.finish_job(job.id, JobState.CANCELLED)
        finally:
            os._exit(1)

    try:
        with Teller(catalog.layout, job.id, give_up) as teller:
            _wait_for_turn(catalog, job.id)
            return _Outcome(JobState.SUCCEEDED, _work(catalog, job, teller))
    except KeyboardInterrupt:
        return _Outcome(JobState.CANCELLED)
    except Rejected as rejected:
        error = JobError(code="rejected", message=rejected.message)
        return _Outcome(JobState.REJECTED, rejected.result.model_dump(mode="json"), error)
    except AdapterctlError as fault:
        return _failed(fault.code, fault.message)
    except ModuleNotFoundError as fault:
        traceback.print_exc()
        return _failed(
            AdapterctlError.code,
            f"this needs {fault.name}, which is not installed: install adapterctl[cpu] or "
            "adapterctl[gpu]",
        )
    except Exception as fault:  # noqa: BLE001  the boundary: logged, and said in one line
        traceback.print_exc()
        summary = f"{type(fault).__name__}: {fault}" if str(fault) else type(fault).__name__
        return _failed(
            AdapterctlError.code,
            f"this is a fault in adapterctl ({summary}); the details are in {job.log}",
        )


def _wait_for_turn(catalog: Catalog, job_id: str) -> None:
    at_once = _at_once()
    while not _claimed(catalog, job_id, at_once):
        time.sleep(_TURN_INTERVAL_S)
    # What is served meanwhile goes first.
    os.nice(5)


def _claimed(catalog: Catalog, job_id: str, at_once: int) -> bool:
    # Whole, the first time: what it imports, the noting of the end needs.
    with interrupt_deferred():
        return catalog.claim_turn(job_id, at_once)


def _at_once() -> int:
    text = os.environ.get(AT_ONCE_VARIABLE) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{AT_ONCE_VARIABLE} is '{text}': give a number from 1 on, or unset it")
    return int(text)


def _work(catalog: Catalog, job: JobRecord, teller: Teller) -> dict[str, object]:
    # Not before its turn: torch takes seconds and hundreds of megabytes.
    teller.step("starting")
    with interrupt_deferred(), kept_from_collecting():
        from quantize.jobs.kinds import KINDS
        from quantize.merging.merge import Watcher

    context = JobContext(
        id=job.id,
        catalog=catalog,
        directory=catalog.layout.job(job.id),
        actor=job.actor,
        watch=Watcher(step=teller.step, progress=teller.progress),
        starts=job.starts,
    )
    function = KINDS.get(job.kind)
    if function is None:
        raise UsageError(f"this adapterctl has no jobs of the kind '{job.kind}'")
    return function(context, job.order).model_dump(mode="json")


def _failed(code: str, message: str) -> _Outcome:
    sys.stderr.write(f"failed: {message}\n")
    return _Outcome(JobState.FAILED, error=JobError(code=code, message=message))


def _stop_once() -> None:
    """The first SIGINT or SIGTERM is KeyboardInterrupt; a second must not hit the cleaning up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    def terminate(number: int, frame: FrameType | None) -> None:
        # By way of SIGINT, which is held back while torch is imported.
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, terminate)


if __name__ == "__main__":
    main()
