"""`adapterctl evaluate`: what is ordered, what is refused; its figures are tested elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.jobs.models import JobState
from tests.adapters.jobs_at_hand import living_job, order
from tests.quantize.forks import Forked
from tests.server.cli.command_line import CommandLine
from tests.server.cli.tiny_artifacts import TinyArtifacts


@pytest.fixture(scope="module")
def store(tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bot` on the base `tiny`, which has no tokenizer."""
    root = tmp_path_factory.mktemp("evaluating") / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.first), name="bot", base="tiny")
    return root


@pytest.fixture
def cli(store: Path, forked: Forked) -> CommandLine:
    return CommandLine(("--store", str(store)))


@pytest.fixture
def waiting(store: Path) -> Iterator[None]:
    """A job that runs, so that every other waits."""
    with (
        Catalog.open(store) as catalog,
        living_job(catalog, order("blocking", "bot:v1")) as job,
    ):
        assert catalog.claim_turn(job.id, 1)
        yield
        catalog.finish_job(job.id, JobState.FAILED)


@pytest.mark.usefixtures("waiting")
def test_what_is_ordered(
    cli: CommandLine, tiny: TinyArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.base.parent)
    limits = ("--max-kl", "0.1", "--max-ppl-increase", "0.05", "--eval-tokens", "100")
    job = cli.ok(
        *("evaluate", "bot", "--against", "./base", "--eval", "texts.jsonl", *limits),
        *("--task", "one.yaml", "--task", "two.yaml", "--url", "http://127.0.0.1:1", "--detach"),
    )
    wanted = job["order"]
    assert (job["kind"], wanted["reference"]) == ("evaluate", "bot:v1")
    assert wanted["against"] == str(tiny.base)
    assert wanted["evaluate"] == {
        "task": str(tiny.base.parent / "texts.jsonl"),
        "tokens": 100,
        "max_kl": 0.1,
        "max_ppl_increase": 0.05,
    }
    assert wanted["tasks"] == [str(tiny.base.parent / name) for name in ("one.yaml", "two.yaml")]
    assert cli.ok("jobs", "cancel", job["id"])["id"] == job["id"]
    base = cli.ok("evaluate", "bot", "--against", "tiny", "--detach")
    assert base["order"]["against"] == "tiny"
    cli.ok("jobs", "cancel", base["id"])


def test_refused_before_there_is_a_job(cli: CommandLine, tmp_path: Path) -> None:
    before = [job["id"] for job in cli.ok("jobs")]
    assert cli.refused("evaluate", "bot")[0] == 2
    assert (
        "name it with --url"
        in cli.refused("evaluate", "bot", "--against", "tiny", "--task", "one.yaml")[1]["message"]
    )
    unknown = cli.refused("evaluate", "bot", "--against", "nobody")[1]
    assert unknown["code"] == "model_not_found"
    remote = CommandLine(("--server", "http://127.0.0.1:1"))
    code, error = remote.refused("evaluate", "bot", "--against", "./here")
    assert (code, error["code"]) == (2, "usage")
    assert "on the server's machine" in error["message"]
    assert [job["id"] for job in cli.ok("jobs")] == before


def test_refused_by_the_job(cli: CommandLine, tmp_path: Path) -> None:
    for reference, options, said in (
        (str(tmp_path / "no"), (), "is no model's directory"),
        ("bot", ("--eval", str(tmp_path / "no.jsonl")), "there is no file"),
        ("bot", (), "bot:v1 has no tokenizer"),
    ):
        error = cli.refused("evaluate", reference, "--against", "tiny", *options)[1]
        assert said in error["message"]
