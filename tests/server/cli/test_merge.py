"""`adapterctl merge`: the child that does the work, its answer, and every way it can be ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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


def test_wrong_inputs_are_one_line_each(cli: CommandLine, tmp_path: Path) -> None:
    assert cli.refused("merge", "nobody", "--out", str(tmp_path / "o"))[1]["code"] == (
        "model_not_found"
    )
    assert cli.refused("merge", "bot:v7", "--out", str(tmp_path / "o"))[1]["code"] == (
        "version_not_found"
    )
    assert cli.refused("merge", "bot", "--out", str(tmp_path / "no" / "o"))[0] == 2
    assert cli.refused("merge", "bot", "--requantize", "awkward")[0] == 2
    code, error = CommandLine(("--server", "http://127.0.0.1:1")).refused("merge", "bot")
    assert (code, error["code"]) == (2, "usage")
    assert "on the server's machine" in error["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def running(store: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A merge that has begun, and the child that does it."""
    command = [sys.executable, "-m", "server.cli.main", "--store", str(store)]
    parent = subprocess.Popen(
        [*command, "merge", "bot", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(parent.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    yield parent, children[0]
    if parent.poll() is None:
        parent.kill()
    parent.communicate()


def test_ctrl_c(running: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path) -> None:
    parent, child = running
    parent.send_signal(signal.SIGINT)
    _, complaint = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert complaint.splitlines()[-1].startswith("adapterctl: interrupted: nothing is half done")
    assert "Traceback" not in complaint
    # It may have been hit while the child was being started, which then finds its stdin closed.
    child.wait(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_is_killed_is_said(
    running: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    parent, child = running
    child.kill()
    _, complaint = parent.communicate(timeout=60)
    assert parent.returncode == 1
    assert "killed by signal 9" in complaint.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_no_child_outlives_its_parent(
    running: tuple[subprocess.Popen[str], psutil.Process], tmp_path: Path
) -> None:
    parent, child = running
    parent.kill()
    child.wait(timeout=60)
    assert not (tmp_path / "out").exists()
