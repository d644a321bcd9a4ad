"""The part of the catalog that is about jobs: ordered here, done by processes of their own."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.errors import Conflict, InUse, NotFound, UsageError
from adapters.jobs.models import JobError, JobLog, JobRecord, JobState
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.models import BaseRecord, VersionRecord
from adapters.registry import job_reader, reader
from adapters.store.durable import store_io
from adapters.store.job_files import job_lives, read_log, take_job_lock
from adapters.store.layout import StoreLayout
from adapters.store.locks import store_lock

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter

# A job that dies every time it runs must not take every server's start with it.
_STARTS_BY_SERVERS = 3


class JobCatalog(AuditCatalog):
    """What can be done with the jobs of one store; `Catalog` is one of these.

    Wherever a job is named, the beginning of its id is enough if no other begins so.
    """

    layout: StoreLayout

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    def base(self, name: str) -> BaseRecord:
        raise NotImplementedError

    def show(self, ref: str) -> VersionRecord:
        raise NotImplementedError

    # --- looking -----------------------------------------------------------------------------

    def jobs(self, prefix: str = "") -> list[JobRecord]:
        """The jobs, the oldest first; those whose process died as `interrupted`."""
        found = self._stored_jobs(prefix)
        if not (gone := job_reader.dead(self.layout, found)):
            return found
        # A job notes its end before it drops its lock: what the registry says now is the truth.
        found = self._stored_jobs(prefix)
        gone &= job_reader.dead(self.layout, found)
        return [
            job.model_copy(update={"state": JobState.INTERRUPTED}) if job.id in gone else job
            for job in found
        ]

    def job(self, job_id: str) -> JobRecord:
        """One job; raises NotFound, and UsageError for a beginning that several ids share."""
        found = self.jobs(job_id) if job_id else []
        if not found:
            raise NotFound(f"there is no job '{job_id}': `adapterctl jobs` lists what there is")
        if len(found) > 1:
            names = ", ".join(job.id for job in found[:5])
            raise UsageError(f"'{job_id}' is the beginning of several jobs ({names}): give more")
        return found[0]

    def job_log(self, job_id: str, offset: int = 0) -> JobLog:
        """What the job and its tools printed, from byte `offset` on, as far as it is written."""
        job = self.job(job_id)
        with store_io(self.layout.root):
            text, following = read_log(Path(job.log), max(0, offset))
        return JobLog(text=text, next=following)

    # --- ordering ----------------------------------------------------------------------------

    @audited("jobs.order", lambda given: str(given["order"].reference))
    def submit_job(
        self,
        order: MergeOrder | EvaluateOrder,
        *,
        actor: str = "local",
        at_once: int | None = None,
    ) -> JobRecord:
        """Puts a job into the queue and starts its process; returns at once.

        A job with the same order, from the same versions, that has no result yet takes its place:
        one that lives is joined, one that ended goes on. `at_once` jobs run at the same time; None
        leaves that to the environment. Raises NotFound errors for the references of the order.
        """
        from adapters.jobs.launching import launch, pinned
        from adapters.registry.jobs import add_job, new_job_id, same_job

        order = pinned(self, order)
        while True:
            with self._writer().transaction() as connection:
                known = same_job(connection, order)
            if known is not None:
                try:
                    return self.resume_job(known, at_once=at_once)
                except (Conflict, NotFound):
                    job = next(iter(self.jobs(known)), None)
                    if job is not None and job.state.living:
                        return job
                    # It comes to its end, or is removed, this very moment.
                    time.sleep(0.05)
                    continue
            job_id = new_job_id()
            # Shared with those who add: gc must not see a directory before its row.
            with store_lock(self.layout, shared=True), self._locked(job_id) as lock:
                if lock is None:
                    continue
                with self._writer().transaction() as connection:
                    # Somebody may have ordered the same meanwhile.
                    if same_job(connection, order) is not None:
                        continue
                    if not add_job(connection, job_id, order, actor):
                        continue
                launch(self.layout, job_id, lock, at_once=at_once)
            return self.job(job_id)

    @audited("jobs.resume", "job_id")
    def resume_job(self, job_id: str, *, at_once: int | None = None) -> JobRecord:
        """Starts the process of a job again, which goes on from what is in its work directory.

        Raises Conflict for a job that lives or has come to a result.
        """
        from adapters.jobs.launching import launch
        from adapters.registry.jobs import queue_again

        job = self.job(job_id)
        with self._locked(job.id) as lock:
            # Looked at again: nobody else can start it now.
            state = next((found.state for found in self._stored_jobs(job.id)), None)
            if lock is None:
                raise Conflict(f"job {job.id} is {job.state}: there is nothing to resume")
            if state in (None, JobState.SUCCEEDED, JobState.REJECTED):
                raise Conflict(
                    f"job {job.id} has {job.state}: order it again for another result"
                    if job.state is JobState.SUCCEEDED
                    else f"job {job.id} was {job.state}: order it again with other options"
                )
            with self._writer().transaction() as connection:
                queue_again(connection, job.id)
            launch(self.layout, job.id, lock, at_once=at_once)
        return self.job(job.id)

    def resume_interrupted(self, *, at_once: int | None = None) -> list[str]:
        """Resumes the jobs whose process died, but not those that died every time; their ids."""
        resumed = []
        for job in self.jobs():
            if job.state is JobState.INTERRUPTED and job.starts < _STARTS_BY_SERVERS:
                try:
                    self.resume_job(job.id, at_once=at_once)
                except (Conflict, NotFound):
                    continue  # somebody else was quicker
                resumed.append(job.id)
        return resumed

    @audited("jobs.cancel", "job_id")
    def cancel_job(self, job_id: str) -> JobRecord:
        """Asks a job to end, which it does within seconds; what it finished is kept.

        Raises Conflict for a job that has ended.
        """
        from adapters.registry.jobs import ask_to_cancel, finish_job

        job = self.job(job_id)
        if not job.state.living and job.state is not JobState.INTERRUPTED:
            raise Conflict(f"job {job.id} has ended ({job.state}): there is nothing to cancel")
        with self._locked(job.id) as lock, self._writer().transaction() as connection:
            if lock is None:
                ask_to_cancel(connection, job.id)
            elif any(found.state.living for found in self._stored_jobs(job.id)):
                finish_job(connection, job.id, JobState.CANCELLED)
        return self.job(job.id)

    @audited("jobs.rm", "job_id")
    def rm_job(self, job_id: str) -> JobRecord:
        """Forgets a job that has ended and removes its log and its work; raises InUse."""
        from adapters.registry.jobs import remove_job

        job = self.job(job_id)
        with self._locked(job.id) as lock:
            if lock is None:
                raise InUse(
                    f"job {job.id} is {job.state}: end it first with `adapterctl jobs cancel "
                    f"{job.id}`"
                )
            # In staging it is gc's if this is killed now; with its lock held it is still ours.
            doomed = self.layout.staging / f"job-{job.id}-{secrets.token_hex(4)}"
            with store_io(self.layout.root):
                self.layout.job(job.id).replace(doomed)
            with self._writer().transaction() as connection:
                remove_job(connection, job.id)
            shutil.rmtree(doomed, ignore_errors=True)
        return job

    # --- what the job's own process says ------------------------------------------------------

    def claim_turn(self, job_id: str, at_once: int) -> bool:
        """Whether the queued job is a running one from now on; if not, it is not its turn yet."""
        from adapters.registry.jobs import claim_turn

        def lives(other: str) -> bool:
            return job_lives(self.layout, other)

        with self._writer().transaction() as connection:
            return claim_turn(connection, job_id, lives, at_once)

    @audited("jobs.end", "job_id")
    def finish_job(
        self,
        job_id: str,
        state: JobState,
        *,
        result: dict[str, Any] | None = None,
        error: JobError | None = None,
    ) -> None:
        """What became of the job, noted by its process before it drops the lock."""
        from adapters.registry.jobs import finish_job

        with self._writer().transaction() as connection:
            finish_job(connection, job_id, state, result=result, error=error)

    # --- inside -------------------------------------------------------------------------------

    def _stored_jobs(self, prefix: str) -> list[JobRecord]:
        with reader.reading(self.layout.root) as connection:
            return job_reader.load_jobs(connection, self.layout, prefix=prefix)

    def _job_ids(self) -> list[str]:
        """Of every job, whatever can or cannot be read of it."""
        with reader.reading(self.layout.root) as connection:
            return job_reader.load_ids(connection)

    @contextmanager
    def _locked(self, job_id: str) -> Iterator[int | None]:
        """The job's lock; None while its process lives. A process started meanwhile keeps it."""
        lock = take_job_lock(self.layout, job_id)
        try:
            yield lock
        finally:
            if lock is not None:
                os.close(lock)
