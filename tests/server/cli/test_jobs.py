"""`adapterctl jobs` and a merge as a job, on a store and over a server's admin API alike."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.jobs.models import JobState
from server.cli import following
from tests.adapters.jobs_at_hand import dead_job, living_job, order
from tests.quantize.forks import Forked
from tests.server.cli.command_line import CommandLine, admin_server
from tests.server.cli.tiny_artifacts import TinyArtifacts


@dataclass(frozen=True)
class Place:
    """A store, and the command line on it one way or the other."""

    catalog: Catalog
    cli: CommandLine
    actor: str | None


@pytest.fixture(scope="module", params=["store", "server"])
def place(
    request: pytest.FixtureRequest, tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("jobs") / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.first), name="bot", base="tiny")
        if request.param == "store":
            yield Place(catalog, CommandLine(("--store", str(root))), None)
            return
        with admin_server(root) as url:
            yield Place(catalog, CommandLine(("--server", url)), "admin")


@pytest.fixture(autouse=True)
def _every_test_begins_without_jobs(place: Place) -> Iterator[None]:
    yield
    for job in place.catalog.jobs():
        place.catalog.rm_job(job.id)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_merge_is_followed(place: Place, forked: Forked, tmp_path: Path) -> None:
    merged = place.cli.ok("merge", "bot", "--out", str(tmp_path / "out"))
    assert (merged["name"], merged["version"], merged["path"]) == (
        "bot",
        "v1",
        str(tmp_path / "out"),
    )
    assert (tmp_path / "out" / "config.json").is_file()
    (job,) = place.cli.ok("jobs")
    assert (job["kind"], job["state"], job["result"]) == ("merge", "succeeded", merged)
    assert job["order"]["reference"] == "bot:v1"
    assert job["progress"]["done"] == job["progress"]["total"] > 0
    if place.actor:
        assert job["actor"] == place.actor
    answer = place.cli("merge", "bot", "--out", str(tmp_path / "again"))
    assert (answer.code, answer.out.splitlines()[0]) == (0, "Merged bot:v1 into tiny")
    assert "merging" in answer.err


def test_detached(place: Place, forked: Forked, tmp_path: Path) -> None:
    with living_job(place.catalog, order()) as blocker:
        assert place.catalog.claim_turn(blocker.id, 1)
        job = place.cli.ok("merge", "bot", "--out", str(tmp_path / "out"), "--detach")
        assert job["state"] == "queued"
        # The same again is the same job.
        answer = place.cli("merge", "bot", "--out", str(tmp_path / "out"), "--detach")
        assert answer.out.startswith(f"Job {job['id']} goes on by itself")
        lines = place.cli("jobs", "ls").out.splitlines()
        assert [line.split()[:4] for line in lines] == [
            ["ID", "KIND", "REFERENCE", "STATE"],
            [blocker.id, "merge", "bot:v1", "running"],
            [job["id"], "merge", "bot:v1", "queued"],
        ]
        code, error = place.cli.refused("jobs", "rm", job["id"])
        assert (code, error["code"]) == (1, "in_use")
        assert place.cli.refused("jobs", "resume", job["id"])[1]["code"] == "conflict"
        cancelled = place.cli("jobs", "cancel", job["id"])
        assert cancelled.out == f"Job {job['id']} was told to end.\n"
        until(lambda: place.cli.ok("jobs", "show", job["id"])["state"] == "cancelled")
        assert place.cli.refused("jobs", "cancel", job["id"])[1]["code"] == "conflict"
        assert place.cli.ok("jobs", "resume", job["id"])["starts"] == 2
    shown = place.cli("jobs", "logs", job["id"], "--follow").out
    assert shown.splitlines()[-1].endswith("publishing")
    assert place.cli.ok("jobs", "logs", job["id"]) == {"id": job["id"], "log": shown}
    until(lambda: place.cli.ok("jobs", "show", job["id"])["state"] == "succeeded")
    assert place.cli.ok("jobs", "rm", job["id"]) == {"removed": job["id"]}
    assert place.cli.refused("jobs", "show", job["id"])[1]["code"] == "not_found"
    assert (tmp_path / "out" / "config.json").is_file()


def test_ctrl_c_in_the_middle_of_an_answer(
    place: Place, forked: Forked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is of no use any more, and the server must hear of it all the same."""
    read, answers = http.client.HTTPResponse.read, 0

    def interrupted(response: http.client.HTTPResponse, *size: int) -> bytes:
        nonlocal answers
        answers += 1
        if answers == 3:
            raise KeyboardInterrupt
        return read(response, *size)

    with living_job(place.catalog, order()) as blocker:
        assert place.catalog.claim_turn(blocker.id, 1)
        if place.actor is None:
            monkeypatch.setattr(following, "_others", interrupt)
        else:
            monkeypatch.setattr(http.client.HTTPResponse, "read", interrupted)
        answer = place.cli("merge", "bot", "--out", str(tmp_path / "out"))
        assert answer.code == 130
        assert "adapterctl: interrupted: nothing is half done" in answer.err
        assert place.catalog.jobs()[-1].state is JobState.CANCELLED


def interrupt(*_: object) -> bool:
    raise KeyboardInterrupt


def test_an_interrupted_one_is_shown_as_such(place: Place) -> None:
    job = dead_job(place.catalog, order("there"))
    (found,) = place.cli.ok("jobs")
    assert (found["id"], found["state"]) == (job.id, "interrupted")
    shown = place.cli("jobs", "show", job.id[:7]).out
    for part in (f"Job {job.id}: merge bot:v1", "interrupted", "by tester", "/nowhere/there"):
        assert part in shown
    assert place.cli("jobs", "cancel", job.id).out == f"Job {job.id} is cancelled.\n"
    assert place.cli("jobs", "rm", job.id).out == f"Removed job {job.id}\n"
    assert place.cli("jobs").out == "No job yet. `adapterctl merge REF` makes one.\n"


@pytest.mark.parametrize("command", ["show", "logs", "cancel", "resume", "rm"])
def test_there_is_no_such_job(place: Place, command: str) -> None:
    for name in ("zzzzzzzz", "", "../store", "a b"):
        code, error = place.cli.refused("jobs", command, name)
        assert (code, error["code"]) == (1, "not_found")
        assert (
            error["message"] == f"there is no job '{name}': `adapterctl jobs` lists what there is"
        )


def test_a_beginning_that_several_share(place: Place) -> None:
    ids = [dead_job(place.catalog, order(name)).id for name in "ab"]
    code, error = place.cli.refused("jobs", "show", ids[0][:4])
    assert (code, error["code"]) == (2, "usage")
    assert all(job_id in error["message"] for job_id in ids)


def test_completion(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    from server.cli.app import root
    from server.cli.session import Session

    job = dead_job(place.catalog, order())
    option, value = place.cli.options
    session = Session(store=value) if option == "--store" else Session(server=value)
    complete = ShellComplete(root, {"obj": session}, "adapterctl", "_ADAPTERCTL_COMPLETE")
    found = complete.get_completions(["jobs", "show"], job.id[:3])
    assert [(item.value, item.help) for item in found] == [(job.id, "merge bot:v1, interrupted")]
    session.close()
