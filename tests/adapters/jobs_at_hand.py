"""Jobs in the registry without processes: what a test holds the lock of, lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from adapters.catalog import Catalog
from adapters.jobs.models import JobRecord
from adapters.jobs.orders import MergeOrder
from adapters.registry.jobs import add_job, new_job_id
from adapters.registry.writer import RegistryWriter
from adapters.store.job_files import take_job_lock


def order(name: str = "a", reference: str = "bot:v1") -> MergeOrder:
    """An order that is told from others by its output."""
    return MergeOrder(reference=reference, out=f"/nowhere/{name}")


def dead_job(catalog: Catalog, wanted: MergeOrder) -> JobRecord:
    """A job that waits and whose process is gone."""
    with living_job(catalog, wanted) as job:
        pass
    return catalog.job(job.id)


@contextmanager
def living_job(catalog: Catalog, wanted: MergeOrder) -> Iterator[JobRecord]:
    """A job in the queue that lives as long as the block."""
    job_id, lock = _added(catalog, wanted)
    try:
        yield catalog.job(job_id)
    finally:
        os.close(lock)


def _added(catalog: Catalog, wanted: MergeOrder) -> tuple[str, int]:
    """A new job and its lock; ids of one second collide once in a thousand times."""
    with closing(RegistryWriter(catalog.layout.root)) as writer:
        while True:
            job_id = new_job_id()
            lock = take_job_lock(catalog.layout, job_id)
            if lock is None:
                continue
            with writer.transaction() as connection:
                if add_job(connection, job_id, wanted, "tester"):
                    return job_id, lock
            os.close(lock)
