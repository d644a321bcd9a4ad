"""Jobs as processes: queued, killed at random, resumed to the same bytes, cancelled, failed."""

from __future__ import annotations

import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from pydantic import BaseModel

import adapters.jobs.launching
import quantize.job
import quantize.jobs.kinds
from adapters.catalog import Catalog
from adapters.errors import Conflict
from adapters.frozen import Frozen
from adapters.jobs.models import JobError, JobRecord, JobState
from adapters.jobs.orders import MergeOrder
from quantize.jobs.context import JobContext, Rejected
from quantize.jobs.telling import Teller
from tests.adapters.intake.artifact_builders import adapter_parts, write_parts
from tests.adapters.jobs_at_hand import living_job, order
from tests.quantize.conftest import Shop
from tests.quantize.forks import Fork, Forked, Forks
from tests.quantize.merging.test_resuming import bytes_of

KILLS = 10


@dataclass
class Yard:
    """A store whose jobs are forks: the catalog, the version to merge, the latest processes."""

    catalog: Catalog
    reference: str
    processes: dict[str, Fork]

    def order(self, out: Path, *, at_once: int | None = None) -> JobRecord:
        wanted = MergeOrder(reference=self.reference, out=str(out))
        return self.catalog.submit_job(wanted, at_once=at_once)

    def state(self, job: JobRecord) -> JobState:
        return self.catalog.job(job.id).state

    def ended(self, job: JobRecord) -> JobRecord:
        until(lambda: not self.state(job).living)
        return self.catalog.job(job.id)

    def kill(self, job: JobRecord) -> None:
        self.processes[job.id].kill()
        until(lambda: not self.state(job).living)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def adapter(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("jobs") / "adapter"
    write_parts(folder, *adapter_parts(shop.catalog.base_descriptor("shards")))
    shop.register(folder, "worked", "shards")
    return "worked"


@pytest.fixture
def yard(shop: Shop, adapter: str, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    forked = Forked(forks)
    monkeypatch.setattr(adapters.jobs.launching, "launch", forked)
    yard = Yard(shop.catalog, adapter, forked.processes)
    yield yard
    for job in shop.catalog.jobs():
        if job.state.living:
            yard.kill(job)
        shop.catalog.rm_job(job.id)


def test_killed_at_ten_random_moments(yard: Yard, tmp_path: Path) -> None:
    """One merge: every time it goes on, and in the end it has the bytes of an undisturbed one."""
    began = time.monotonic()
    whole = yard.ended(yard.order(tmp_path / "undisturbed"))
    duration = time.monotonic() - began
    assert whole.state is JobState.SUCCEEDED, whole.error
    expected = bytes_of(tmp_path / "undisturbed")
    assert len(expected) > 6, "the base must lie in several shards"
    chance, kills, finished = random.Random(), 0, 0
    job = yard.order(tmp_path / "out")
    while kills < KILLS:
        time.sleep(chance.uniform(0, duration))
        yard.kill(job)
        found = yard.catalog.job(job.id)
        if found.state is JobState.SUCCEEDED:
            # Quicker than the first one: the remaining kills are for another.
            assert bytes_of(tmp_path / "out") == expected
            (tmp_path / "out").rename(tmp_path / f"out-{finished}")
            finished += 1
            job = yard.order(tmp_path / "out")
            continue
        assert found.state is JobState.INTERRUPTED, found.error
        kills += 1
        again = yard.order(tmp_path / "out") if kills % 2 else yard.catalog.resume_job(job.id)
        assert (again.id, again.starts) == (job.id, found.starts + 1)
    done = yard.ended(job)
    assert (done.state, done.error) == (JobState.SUCCEEDED, None)
    assert bytes_of(tmp_path / "out") == expected
    assert not list(tmp_path.glob(".*"))
    assert not list(yard.catalog.layout.job(job.id).glob("work/*"))


def test_published_but_killed_before_it_could_say_so(yard: Yard, tmp_path: Path) -> None:
    job = yard.ended(yard.order(tmp_path / "out"))
    (yard.catalog.layout.job(job.id) / "work").mkdir()
    (yard.catalog.layout.job(job.id) / "work" / "began").touch()
    with closing(sqlite3.connect(yard.catalog.layout.database)) as database, database:
        database.execute("UPDATE jobs SET state = 'running', result = NULL WHERE id = ?", (job.id,))
    assert yard.state(job) is JobState.INTERRUPTED
    again = yard.ended(yard.order(tmp_path / "out"))
    assert (again.state, again.result) == (JobState.SUCCEEDED, job.result)


def test_one_at_a_time_and_a_second_is_cancelled_in_the_queue(yard: Yard, tmp_path: Path) -> None:
    with living_job(yard.catalog, order("first")) as first:
        assert yard.catalog.claim_turn(first.id, 1)
        second = yard.order(tmp_path / "second")
        third = yard.order(tmp_path / "third", at_once=2)
        # It may run beside one other, but the second was there first.
        yard.catalog.cancel_job(second.id)
        assert yard.ended(second).state is JobState.CANCELLED
        assert yard.ended(third).state is JobState.SUCCEEDED
        assert yard.state(first) is JobState.RUNNING
    # Its lock is free: it takes no place any more.
    assert yard.ended(yard.catalog.resume_job(second.id)).state is JobState.SUCCEEDED


def test_a_signal_is_a_cancel(yard: Yard, tmp_path: Path) -> None:
    with living_job(yard.catalog, order("first")) as first:
        assert yard.catalog.claim_turn(first.id, 1)
        for number in (signal.SIGTERM, signal.SIGINT):
            job = yard.order(tmp_path / "out")
            status = Path(f"/proc/{yard.processes[job.id].pid}/status")
            # Once it listens; Python itself does to SIGINT from the beginning.
            until(partial(caught, status, signal.SIGTERM))
            yard.processes[job.id].signal(number)
            assert yard.ended(job).state is JobState.CANCELLED


def caught(status: Path, number: signal.Signals) -> bool:
    (mask,) = [line.split()[1] for line in status.read_text().splitlines() if "SigCgt" in line]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_what_it_prints_and_fails_with(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    job = yard.ended(yard.order(tmp_path / "out"))
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "already_exists")
    log = yard.catalog.job_log(job.id)
    assert f"failed: {job.error.message}\n" in log.text
    assert yard.catalog.job_log(job.id, log.next).text == ""
    # The same order when the reason is gone: the same job.
    (tmp_path / "out" / "notes.txt").unlink()
    again = yard.ended(yard.order(tmp_path / "out"))
    assert (again.id, again.state, again.starts) == (job.id, JobState.SUCCEEDED, 2)


class _Figures(Frozen):
    kl: float


@pytest.fixture
def signals() -> Iterator[None]:
    """What a job's process does with them is not for the tests'."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_beyond_a_quality_gate(yard: Yard, monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    def rejecting(context: JobContext, order: MergeOrder) -> BaseModel:
        (context.work / "model").touch()
        raise Rejected("KL is 0.3, above --max-kl 0.1", _Figures(kl=0.3))

    monkeypatch.setitem(quantize.jobs.kinds.KINDS, "merge", rejecting)
    with living_job(yard.catalog, order("rejected")) as job:
        pass
    quantize.job.run(yard.catalog.layout.root, job.id)
    ended = yard.catalog.job(job.id)
    assert (ended.state, ended.result) == (JobState.REJECTED, {"kl": 0.3})
    assert ended.error == JobError(code="rejected", message="KL is 0.3, above --max-kl 0.1")
    assert (yard.catalog.layout.job(job.id) / "work" / "model").exists()


def test_a_fault_of_ours_is_one_sentence_and_a_traceback_in_the_log(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, signals: None, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(context: JobContext, order: MergeOrder) -> BaseModel:
        raise ZeroDivisionError("of what")

    monkeypatch.setitem(quantize.jobs.kinds.KINDS, "merge", failing)
    with living_job(yard.catalog, order("failing")) as job:
        pass
    quantize.job.run(yard.catalog.layout.root, job.id)
    ended = yard.catalog.job(job.id)
    assert ended.error is not None
    assert ended.error.message == (
        f"this is a fault in adapterctl (ZeroDivisionError: of what); the details are in {job.log}"
    )
    assert "Traceback" in capfd.readouterr().err


def test_a_job_has_one_process(yard: Yard) -> None:
    refused = pytest.raises(Conflict, match="has a process already")
    with living_job(yard.catalog, order("one")) as job, refused:
        quantize.job.run(yard.catalog.layout.root, job.id)


def test_progress_is_written_now_and_then_and_the_last_of_it_always(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Teller] = []
    tell = Teller._tell

    def counted(teller: Teller, connection: sqlite3.Connection) -> None:
        writes.append(teller)
        tell(teller, connection)

    monkeypatch.setattr(Teller, "_tell", counted)
    with living_job(yard.catalog, order("telling")) as job:
        with Teller(yard.catalog.layout, job.id, lambda: None) as teller:
            teller.step("counting")
            for done in range(100_000):
                teller.progress(done + 1, 100_000)
        found = yard.catalog.job(job.id)
    assert (found.step, found.done, found.total) == ("counting", 100_000, 100_000)
    assert len(writes) < 10


def test_work_that_does_not_hear_of_its_end_is_given_up(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    monkeypatch.setattr("quantize.jobs.telling._GRACE_S", 0.1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given_up = threading.Event()
    with (
        living_job(yard.catalog, order("deaf")) as job,
        Teller(yard.catalog.layout, job.id, given_up.set),
    ):
        yard.catalog.cancel_job(job.id)
        assert given_up.wait(60)
