"""`adapterctl merge`: the job that does the work, its answer, and every way it can be ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from adapters.catalog import Catalog
from tests.server.cli.command_line import CommandLine, clean_environment
from tests.server.cli.tiny_artifacts import TinyArtifacts


@pytest.fixture(scope="module")
def store(tiny: TinyArtifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bot` (hot) and `norm` (merged lane) on the base `tiny`."""
    root = tmp_path_factory.mktemp("merging") / "store"
    with Catalog.init(root) as catalog:
        catalog.base_add("tiny", tiny.base)
        catalog.register(str(tiny.first), name="bot", base="tiny")
        catalog.register(str(tiny.norm), name="norm", base="tiny")
    return root


@pytest.fixture
def cli(store: Path) -> CommandLine:
    return CommandLine(("--store", str(store)))


def test_its_answer(cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merged = cli.ok("merge", "norm", "--requantize", "none", "--out", str(out))
    assert (merged["name"], merged["version"], merged["path"]) == ("norm", "v1", str(out))
    assert merged["quantization"] is None
    assert (merged["report"]["lane"], merged["report"]["parameters_changed"]) == ("merged", 1)
    found = load_file(out / "model.safetensors")
    for name, value in load_file(tiny.base / "model.safetensors").items():
        expected = torch.full((32,), 1.5) if name == "model.norm.weight" else value
        assert torch.equal(found[name], expected), name


def test_for_people_and_where_it_goes_by_itself(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("merge", "bot", "--dtype", "bfloat16")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("Merged bot:v1 into tiny\n")
    assert str(tmp_path / "bot-v1-merged") in answer.out
    assert "of the change, at most" in answer.out
    assert "merging" in answer.err
    code, error = cli.refused("merge", "bot")
    assert (code, error["code"]) == (1, "already_exists")


def test_into_what_a_qlora_was_trained_on(
    cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    into = ("--base-weights", "dequantized", "--compare-base-weights")
    merged = cli.ok("merge", "bot", *into, "--out", str(tmp_path / "out"))
    used = merged["report"]["base_weights"]
    assert (used["weights"], used["rounding"]) == ("dequantized", "nf4")
    assert 0.05 < used["compared"]["overall"] < 0.15
    answer = cli("merge", "bot", "--compare-base-weights", "--out", str(tmp_path / "other"))
    assert answer.code == 0, answer.err
    assert "original; a merge into the dequantized ones differs by" in answer.out
    wrong = ("--base-weights", "dequantized", "--nf4-checkpoint", str(tiny.base))
    code, error = cli.refused("merge", "bot", *wrong, "--out", str(tmp_path / "none"))
    assert (code, error["code"]) == (1, "invalid_base")
    assert "holds no four-bit weights" in error["message"]


def test_wrong_inputs_are_one_line_each(cli: CommandLine, tmp_path: Path) -> None:
    before = cli.ok("jobs")
    out = ("--out", str(tmp_path / "o"))
    assert cli.refused("merge", "nobody", *out)[1]["code"] == "model_not_found"
    assert cli.refused("merge", "bot:v7", *out)[1]["code"] == "version_not_found"
    assert cli.refused("merge", "bot*0.5+norm", *out)[0] == 2
    assert cli.refused("merge", "bot", "--requantize", "awkward")[0] == 2
    remote = CommandLine(("--server", "http://127.0.0.1:1"))
    for where in ((), ("--out", "here")):
        code, error = remote.refused("merge", "bot", *where)
        assert (code, error["code"]) == (2, "usage")
        assert "on the server's machine" in error["message"]
    here = ("--nf4-checkpoint", "here", "--out", "/there")
    assert "a whole path there" in remote.refused("merge", "bot", *here)[1]["message"]
    assert list(tmp_path.iterdir()) == []
    assert cli.ok("jobs") == before


def test_what_only_the_job_can_tell(cli: CommandLine, tmp_path: Path) -> None:
    code, error = cli.refused("merge", "bot", "--out", str(tmp_path / "no" / "o"))
    assert (code, "there is no directory" in error["message"]) == (2, True)
    job = cli.ok("jobs")[-1]
    assert (job["state"], job["error"]) == (
        "failed",
        {"code": "usage", "message": error["message"]},
    )
    assert error["message"] in cli("jobs", "logs", job["id"]).out


Following = tuple[subprocess.Popen[str], str]


@pytest.fixture
def following(store: Path, cli: CommandLine, tmp_path: Path) -> Iterator[Following]:
    """A command line that follows a merge, and the id of its job."""
    known = {job["id"] for job in cli.ok("jobs")}
    command = [sys.executable, "-m", "server.cli.main", "--store", str(store)]
    parent = subprocess.Popen(
        [*command, "merge", "bot", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    until(lambda: len(cli.ok("jobs")) > len(known))
    (job_id,) = {job["id"] for job in cli.ok("jobs")} - known
    yield parent, job_id
    if parent.poll() is None:
        parent.kill()
    parent.communicate()


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_without_a_terminal_cancels(
    following: Following, cli: CommandLine, tmp_path: Path
) -> None:
    parent, job_id = following
    # Before the first step is shown the signal may hit the command line's own start.
    assert parent.stderr is not None
    assert parent.stderr.readline()
    parent.send_signal(signal.SIGINT)
    _, complaint = parent.communicate(timeout=120)
    assert parent.returncode == 130
    assert complaint.splitlines()[-1].startswith("adapterctl: interrupted: nothing is half done")
    assert "Traceback" not in complaint
    assert cli.ok("jobs", "show", job_id)["state"] == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_the_job_outlives_its_command_line_and_a_dead_one_goes_on(
    following: Following, cli: CommandLine, store: Path, tmp_path: Path
) -> None:
    """kill -9 of the command line, then of the job; the same command again is the same job."""
    parent, job_id = following
    parent.kill()
    until(lambda: cli.ok("jobs", "show", job_id)["state"] == "running")
    (process,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and process.info["cmdline"][-3:-1] == [str(store), job_id]
    ]
    process.kill()
    until(lambda: cli.ok("jobs", "show", job_id)["state"] == "interrupted")
    assert not (tmp_path / "out").exists()
    code, error = cli.refused("jobs", "cancel", "nothing")
    assert (code, error["code"]) == (1, "not_found")
    merged = cli.ok("merge", "bot", "--out", str(tmp_path / "out"))
    assert merged["path"] == str(tmp_path / "out")
    job = cli.ok("jobs")[-1]
    assert (job["id"], job["state"], job["starts"]) == (job_id, "succeeded", 2)
