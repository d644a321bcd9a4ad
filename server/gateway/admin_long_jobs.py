"""`/admin/v1/jobs`: work that outlives the request that ordered it, and the server too.

What the others of the admin API call a job ends with its request: see admin_jobs.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from adapters.catalog import Catalog
from adapters.jobs.models import JobLog, JobRecord
from adapters.jobs.orders import Order
from server.gateway.admin_route import actor_of

Offset = Annotated[int, Query(ge=0, description="Bytes to leave out: the `next` of the last part.")]


def add_job_routes(router: APIRouter, catalog: Catalog, *, at_once: int | None) -> None:
    """Everything `adapterctl jobs` does, and ordering one. Ids may be cut as far as they are
    unique."""

    @router.post("/jobs", summary="Order a merge or an evaluation; answered at once")
    def submit(request: Request, body: Order) -> JobRecord:
        return catalog.submit_job(body, actor=actor_of(request), at_once=at_once)

    @router.get("/jobs", summary="List the jobs, the oldest first")
    def jobs() -> list[JobRecord]:
        return catalog.jobs()

    @router.get("/jobs/{job_id}", summary="How far a job is, or what became of it")
    def job(job_id: str) -> JobRecord:
        return catalog.job(job_id)

    @router.get("/jobs/{job_id}/log", summary="What a job and its tools printed")
    def log(job_id: str, offset: Offset = 0) -> JobLog:
        return catalog.job_log(job_id, offset)

    @router.post("/jobs/{job_id}/cancel", summary="Ask a job to end")
    def cancel(job_id: str) -> JobRecord:
        return catalog.cancel_job(job_id)

    @router.post("/jobs/{job_id}/resume", summary="Let a job go on where it stopped")
    def resume(job_id: str) -> JobRecord:
        return catalog.resume_job(job_id, at_once=at_once)

    @router.delete("/jobs/{job_id}", summary="Forget a job that has ended, its log and its work")
    def rm(job_id: str) -> JobRecord:
        return catalog.rm_job(job_id)
