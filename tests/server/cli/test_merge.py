"""`adapterctl merge`: the job that does the work, its answer, and every way it can be ended."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapters.jobs.launching
from adapters.catalog import Catalog
from adapters.jobs.models import JobError, JobState
from adapters.store.layout import StoreLayout
from tests.adapters.jobs_at_hand import living_job, order
from tests.quantize.forks import Forked
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
def cli(store: Path, forked: Forked) -> CommandLine:
    return CommandLine(("--store", str(store)))


def test_its_answer(store: Path, tiny: TinyArtifacts, tmp_path: Path) -> None:
    """With a process as everybody gets it."""
    cli = CommandLine(("--store", str(store)))
    out = tmp_path / "out"
    merged = cli.ok("merge", "norm", "--requantize", "none", "--out", str(out))
    assert (merged["name"], merged["version"], merged["path"]) == ("norm", "v1", str(out))
    assert merged["quantization"] is None
    assert (merged["report"]["lane"], merged["report"]["parameters_changed"]) == ("merged", 1)
    found = load_file(out / "model.safetensors")
    for name, value in load_file(tiny.base / "model.safetensors").items():
        expected = torch.full((32,), 1.5) if name == "model.norm.weight" else value
        assert torch.equal(found[name], expected), name


def test_for_people_and_where_it_goes_by_itself(cli: CommandLine, store: Path) -> None:
    answer = cli("merge", "bot", "--dtype", "bfloat16")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("Merged bot:v1 into tiny\n")
    assert "bot-merged:v1" in answer.out
    assert "of the change, at most" in answer.out
    assert "merging" in answer.err
    again = cli.ok("merge", "bot", "--dtype", "bfloat16", "--tag", "prod")
    assert (again["name"], again["version"], again["tags"]) == (
        "bot-merged",
        "v1",
        ["latest", "prod"],
    )
    shown = cli.ok("show", "bot-merged:prod")
    assert (shown["method"], shown["path"]) == ("merged-model", again["path"])
    assert [origin["reference"] for origin in shown["manifest"]["merged_from"]] == [
        "tiny",
        "bot:v1",
    ]
    for_people = cli("show", "bot-merged").out
    for part in (again["path"], "none (bfloat16)", "yes, from the same inputs and tools"):
        assert part in for_people
    assert next(row for row in cli.ok("ls") if row["name"] == "bot-merged")["lane"] == "merged"
    job = cli.ok("jobs")[-1]
    assert again["path"] in cli("jobs", "show", job["id"]).out
    refused = cli.refused("merge", "bot-merged")[1]["message"]
    assert refused.startswith("bot-merged:v1 is a merged model already")
    code, error = cli.refused("compose", "mix", "bot-merged", "bot")
    assert (code, error["code"]) == (1, "not_hot_servable")
    assert cli.ok("rm", "bot-merged", "--force")["removed"] == ["bot-merged:v1", "bot-merged"]
    assert len(cli.ok("gc")["reports"]) == 1


def test_a_directory_that_is_there(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    code, error = cli.refused("merge", "bot", "--out", str(tmp_path / "out"))
    assert (code, error["code"]) == (1, "already_exists")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--group-size", "64"), "--group-size is for a quantizer: give --requantize, too"),
        (("--asymmetric",), "--symmetric is for a quantizer"),
        (("--no-report", "--max-kl", "0.1"), "--max-kl needs the quality measured"),
        (("--max-kl", "0"), "--max-kl"),
        (("--samples", "0", "--requantize", "awq"), "--samples"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], said: str, cli: CommandLine
) -> None:
    before = cli.ok("jobs")
    code, error = cli.refused("merge", "bot", *options)
    assert (code, error["code"]) == (2, "usage")
    assert said in error["message"]
    assert cli.ok("jobs") == before


def test_into_what_a_qlora_was_trained_on(
    cli: CommandLine, tiny: TinyArtifacts, tmp_path: Path
) -> None:
    into = ("--base-weights", "dequantized", "--compare-base-weights")
    merged = cli.ok("merge", "bot", *into, "--out", str(tmp_path / "out"))
    used = merged["report"]["base_weights"]
    assert (used["weights"], used["rounding"]) == ("dequantized", "nf4")
    # Four bits are off by 9 %; of the sum with this large change it is less.
    assert 0.01 < used["compared"]["overall"] < 0.15
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
    for where in (("--out", "here"), ("--eval", "here"), ("--calibration", "here")):
        code, error = remote.refused("merge", "bot", "--requantize", "awq", *where)
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


def test_a_dead_process_is_said_and_the_same_command_goes_on(
    cli: CommandLine, forked: Forked, tmp_path: Path
) -> None:
    """Killed as it begins; its number of processes tells that it is the same job."""
    forked.kill_next()
    order = ("merge", "bot", "--out", str(tmp_path / "out"))
    code, error = cli.refused(*order)
    job = cli.ok("jobs")[-1]
    assert (code, job["state"], job["starts"]) == (1, "interrupted", 1)
    assert f"the process of job {job['id']} died" in error["message"]
    assert list(tmp_path.iterdir()) == []
    assert cli.ok(*order)["path"] == str(tmp_path / "out")
    again = cli.ok("jobs")[-1]
    assert (again["id"], again["state"], again["starts"]) == (job["id"], "succeeded", 2)


def test_beyond_a_gate_the_figure_is_said(
    cli: CommandLine, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures come as ever, the sentence on stderr, and the exit code is 1."""
    done = cli.ok("merge", "norm", "--out", str(tmp_path / "done"))

    def launch(layout: StoreLayout, job_id: str, lock: int, *, at_once: int | None = None) -> None:
        with Catalog.open(layout.root) as catalog:
            error = JobError(code="rejected", message="KL 0.3 is above --max-kl 0.1")
            catalog.finish_job(job_id, JobState.REJECTED, result=done, error=error)

    monkeypatch.setattr(adapters.jobs.launching, "launch", launch)
    answer = cli("merge", "norm", "--out", str(tmp_path / "rejected"), "--json")
    assert (answer.code, answer.json) == (1, done)
    assert answer.err.splitlines()[0] == "adapterctl: KL 0.3 is above --max-kl 0.1"


@pytest.fixture
def waiting(store: Path) -> Iterator[None]:
    """A job that runs, so that every other waits: none of these imports torch."""
    with (
        Catalog.open(store) as catalog,
        living_job(catalog, order("blocking", "bot:v1")) as job,
    ):
        assert catalog.claim_turn(job.id, 1)
        yield
        catalog.finish_job(job.id, JobState.FAILED)


def merging(store: Path, out: Path, **how: Any) -> subprocess.Popen[str]:
    """A command line of its own that follows a merge."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "server.cli.main", "--store", str(store)),
            *("merge", "bot", "--out", str(out)),
        ],
        text=True,
        env=clean_environment(),
        **how,
    )


@pytest.mark.usefixtures("waiting")
def test_ctrl_c_without_a_terminal_cancels(store: Path, cli: CommandLine, tmp_path: Path) -> None:
    parent = merging(store, tmp_path / "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert parent.stderr is not None
    assert parent.stderr.readline().endswith("waits for its turn\n")
    assert cli.ok("jobs")[-1]["state"] == "queued"
    parent.send_signal(signal.SIGINT)
    _, complaint = parent.communicate(timeout=120)
    assert parent.returncode == 130
    assert complaint.splitlines()[-1].startswith("adapterctl: interrupted: nothing is half done")
    assert "Traceback" not in complaint
    assert cli.ok("jobs")[-1]["state"] == "cancelled"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("waiting")
def test_killing_the_command_line_leaves_the_job(
    store: Path, cli: CommandLine, tmp_path: Path
) -> None:
    parent = merging(store, tmp_path / "out", stderr=subprocess.PIPE)
    assert parent.stderr is not None
    assert parent.stderr.readline().endswith("waits for its turn\n")
    parent.kill()
    parent.communicate(timeout=60)
    job = cli.ok("jobs")[-1]
    assert job["state"] == "queued"
    assert cli.ok("jobs", "cancel", job["id"])["id"] == job["id"]
    assert "waits for its turn" not in cli("jobs", "logs", job["id"], "--follow").out
    assert cli.ok("jobs", "show", job["id"])["state"] == "cancelled"


class Terminal:
    """A command line on a terminal of its own: what it shows, and keys pressed."""

    def __init__(self, store: Path, out: Path) -> None:
        self._master, terminal = pty.openpty()
        self.process = merging(
            store, out, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )
        os.close(terminal)
        self._shown = ""

    def until(self, text: str) -> None:
        while text not in self._shown:
            self._shown += os.read(self._master, 4096).decode()
        self._shown = self._shown.partition(text)[2]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> int:
        code = self.process.wait(60)
        os.close(self._master)
        return code


@pytest.mark.usefixtures("waiting")
def test_ctrl_c_on_a_terminal_asks(store: Path, cli: CommandLine, tmp_path: Path) -> None:
    terminal = Terminal(store, tmp_path / "out")
    terminal.until("waits for its turn")
    job = cli.ok("jobs")[-1]
    for answer, then in (("f\n", "waits for its turn"), ("d\n", f"Job {job['id']} goes on")):
        terminal.interrupt()
        terminal.until("[d]etach (it goes on), [c]ancel, or [f]ollow")
        terminal.press(answer)
        terminal.until(then)
    assert terminal.close() == 0
    assert cli.ok("jobs", "show", job["id"])["state"] == "queued"
    # The same command joins the job; a second Ctrl-C needs no answer.
    terminal = Terminal(store, tmp_path / "out")
    terminal.until("waits for its turn")
    terminal.interrupt()
    terminal.until("[c]ancel")
    terminal.interrupt()
    terminal.until("interrupted: nothing is half done")
    assert terminal.close() == 130
    (same,) = [found for found in cli.ok("jobs") if found["id"] == job["id"]]
    assert (same["state"], same["starts"]) == ("cancelled", 1)
