"""The table of jobs: ids, the queue, states that are read from locks, what is refused."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import adapters.jobs.launching
from adapters.catalog import Catalog
from adapters.errors import AdapterNotFound, Conflict, InUse, NotFound, StoreDamaged, UsageError
from adapters.jobs.models import JobError, JobState
from adapters.jobs.orders import EvaluateOrder, MergeOrder
from adapters.registry.jobs import new_job_id
from adapters.store.job_files import job_lives
from adapters.store.layout import StoreLayout
from tests.adapters.jobs_at_hand import dead_job, living_job, order

Register = Callable[..., str]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None]]:
    """Who would have been started; as if each died at once."""
    calls: list[tuple[str, int | None]] = []

    def launch(layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None) -> None:
        assert job_lives(layout, job_id), "the lock must be held before the process begins"
        calls.append((job_id, at_once))

    monkeypatch.setattr(adapters.jobs.launching, "launch", launch)
    return calls


def test_ids_are_short_and_sort_by_time() -> None:
    moments = (1_767_225_600, 1_767_225_601, 1_800_000_000, 2_000_000_000, 2_800_000_000)
    ids = [new_job_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert {len(job_id) for job_id in ids} == {8}
    assert len({new_job_id(moments[0]) for _ in range(20)}) > 1


def test_a_life(catalog: Catalog) -> None:
    assert catalog.jobs() == []
    with living_job(catalog, order()) as job:
        assert (job.state, job.kind, job.order, job.actor) == (
            JobState.QUEUED,
            "merge",
            order(),
            "tester",
        )
        assert catalog.claim_turn(job.id, 1)
        running = catalog.job(job.id[:6])
        assert running.state is JobState.RUNNING
        assert running.started_at is not None
        with pytest.raises(InUse, match=f"is running: end it first with .* cancel {job.id}"):
            catalog.rm_job(job.id)
        with pytest.raises(Conflict, match="is running: there is nothing to resume"):
            catalog.resume_job(job.id)
        catalog.finish_job(job.id, JobState.SUCCEEDED, result={"path": "/there"})
    ended = catalog.job(job.id)
    assert (ended.state, ended.result, ended.error) == (
        JobState.SUCCEEDED,
        {"path": "/there"},
        None,
    )
    assert ended.ended_at is not None
    directory = catalog.layout.job(job.id)
    assert directory.is_dir()
    catalog.gc()
    assert directory.is_dir()
    assert catalog.rm_job(job.id).id == job.id
    assert catalog.jobs() == []
    assert list(catalog.layout.jobs.iterdir()) == list(catalog.layout.staging.iterdir()) == []


def test_a_dead_process_is_told_by_its_lock(catalog: Catalog) -> None:
    with living_job(catalog, order()) as job:
        assert catalog.claim_turn(job.id, 1)
    assert catalog.job(job.id).state is JobState.INTERRUPTED
    assert dead_job(catalog, order("b")).state is JobState.INTERRUPTED
    # Its directory is gone too: removed by hand, restored from a backup.
    shutil.rmtree(catalog.layout.job(job.id))
    assert catalog.job(job.id).state is JobState.INTERRUPTED
    assert catalog.cancel_job(job.id).state is JobState.CANCELLED
    with pytest.raises(Conflict, match=r"has ended \(cancelled\): there is nothing to cancel"):
        catalog.cancel_job(job.id)


def test_gc_leaves_every_job_alone_and_removes_what_no_job_is(catalog: Catalog) -> None:
    resumable = dead_job(catalog, order("1"))
    (catalog.layout.job(resumable.id) / "work" / "shard").touch()
    nobodys = catalog.layout.job("0" * 8)
    (nobodys / "work").mkdir(parents=True)
    with living_job(catalog, order("2")) as job:
        assert catalog.gc(dry_run=True).staging == (nobodys.name,)
        assert nobodys.is_dir()
        assert catalog.gc().staging == (nobodys.name,)
        assert not nobodys.exists()
        assert (catalog.layout.job(resumable.id) / "work" / "shard").exists()
        assert catalog.job(job.id).state is JobState.QUEUED
    assert list(catalog.layout.staging.iterdir()) == []


def test_the_queue(catalog: Catalog) -> None:
    """First come, first served among the living; the dead hold nobody up."""
    with ExitStack() as living:
        first = living.enter_context(living_job(catalog, order("1")))
        dead_job(catalog, order("2"))
        third = living.enter_context(living_job(catalog, order("3")))
        fourth = living.enter_context(living_job(catalog, order("4")))
        assert not catalog.claim_turn(third.id, 1)
        assert catalog.claim_turn(first.id, 1)
        assert not catalog.claim_turn(fourth.id, 2)
        assert catalog.claim_turn(third.id, 2)
        assert not catalog.claim_turn(fourth.id, 2)
        assert catalog.claim_turn(fourth.id, 3)


def test_a_running_job_that_died_leaves_its_place(catalog: Catalog) -> None:
    with living_job(catalog, order("1")) as died:
        assert catalog.claim_turn(died.id, 1)
    with living_job(catalog, order("2")) as job:
        assert catalog.claim_turn(job.id, 1)


def test_submitting_pins_the_version(
    catalog: Catalog, register: Register, launched: list[tuple[str, int | None]]
) -> None:
    register(1, tag="prod")
    register(2)
    job = catalog.submit_job(order(reference="bot:prod"), actor="me", at_once=3)
    assert (job.order.reference, job.actor) == ("bot:v1", "me")
    assert launched == [(job.id, 3)]
    # The same by another name, while the process of the first is dead: it goes on.
    again = catalog.submit_job(order(reference="bot:v1"), actor="you")
    assert (again.id, again.starts, again.actor) == (job.id, 2, "me")
    other = catalog.submit_job(order(reference="bot"))
    assert (other.order.reference, other.id != job.id) == ("bot:v2", True)
    catalog.finish_job(
        job.id, JobState.REJECTED, result={}, error=JobError(code="rejected", message="no")
    )
    assert catalog.submit_job(order(reference="bot:v1")).id not in (job.id, other.id)
    with pytest.raises(Conflict, match="was rejected: order it again with other options"):
        catalog.resume_job(job.id)
    with pytest.raises(AdapterNotFound):
        catalog.submit_job(order(reference="nobody"))
    with pytest.raises(UsageError, match="is a composition"):
        catalog.submit_job(order(reference="bot*0.5+bot:v2"))
    assert len(catalog.jobs()) == 3


def test_an_evaluation_compares_versions_bases_and_directories(
    catalog: Catalog, register: Register, launched: list[tuple[str, int | None]]
) -> None:
    register(1)
    base = catalog.bases()[0].name
    for against, pinned in ((base, base), ("/models/it", "/models/it"), ("bot", "bot:v1")):
        job = catalog.submit_job(EvaluateOrder(reference="bot", against=against))
        assert isinstance(job.order, EvaluateOrder)
        assert (job.order.reference, job.order.against) == ("bot:v1", pinned)


def test_a_job_that_lives_is_joined(
    catalog: Catalog, register: Register, launched: list[tuple[str, int | None]]
) -> None:
    register(1)
    with living_job(catalog, order()) as job:
        assert catalog.submit_job(order(reference="bot")).id == job.id
    assert launched == []


def test_what_a_server_resumes_at_its_start(
    catalog: Catalog, launched: list[tuple[str, int | None]]
) -> None:
    died = dead_job(catalog, order("1"))
    cancelled = catalog.cancel_job(dead_job(catalog, order("2")).id)
    with living_job(catalog, order("3")):
        assert catalog.resume_interrupted(at_once=2) == [died.id]
        assert launched == [(died.id, 2)]
        assert catalog.resume_interrupted() == [died.id]
        # It died three times: somebody has to look at it.
        assert catalog.resume_interrupted() == []
    assert catalog.job(cancelled.id).state is JobState.CANCELLED


def test_names_of_jobs(catalog: Catalog) -> None:
    one, two = dead_job(catalog, order("1")), dead_job(catalog, order("2"))
    shared = one.id[:3]
    assert two.id.startswith(shared)
    with pytest.raises(UsageError, match="is the beginning of several jobs"):
        catalog.job(shared)
    for nothing in ("", "zzz", "%", "_", "../x", one.id + "0"):
        with pytest.raises(NotFound, match="there is no job"):
            catalog.job(nothing)


def test_logs_are_read_in_whole_lines(catalog: Catalog) -> None:
    job = dead_job(catalog, order())
    assert catalog.job_log(job.id).text == ""
    Path(job.log).write_bytes("één\nzwei\nunfini".encode())
    part = catalog.job_log(job.id)
    assert part.text == "één\nzwei\n"
    with Path(job.log).open("ab") as file:
        file.write(b"shed\n\xff\n")
    assert catalog.job_log(job.id, part.next).text == "unfinished\n\ufffd\n"
    Path(job.log).write_bytes(b"x" * 600_000)
    first = catalog.job_log(job.id)
    assert len(first.text) == first.next == 1 << 18


def test_an_entry_that_cannot_be_read(catalog: Catalog) -> None:
    job = dead_job(catalog, order())
    with sqlite3.connect(catalog.layout.database) as database:
        database.execute("""UPDATE jobs SET ordered = '{"kind": "bake"}'""")
    database.close()
    with pytest.raises(StoreDamaged, match=f"entry of job '{job.id}' cannot be read"):
        catalog.jobs()


def test_looking_at_jobs_imports_nothing_heavy(catalog: Catalog) -> None:
    dead_job(catalog, MergeOrder(reference="bot:v1", out="/nowhere"))
    program = (
        "import sys; from pathlib import Path; from adapters.catalog import Catalog; "
        f"print(Catalog.open(Path({str(catalog.layout.root)!r})).jobs()[0].state); "
        "print([name for name in ('torch', 'sqlalchemy', 'alembic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "interrupted\n[]\n"
