"""Ctrl-C in the middle of a registration."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from tests.server.cli.command_line import CommandLine, clean_environment
from tests.server.cli.tiny_artifacts import TinyArtifacts


@pytest.mark.parametrize("delay", [0.0, 0.7, 1.5])
def test_register_leaves_nothing_half_done(
    tiny: TinyArtifacts, tmp_path: Path, delay: float
) -> None:
    store = tmp_path / "store"
    with Catalog.init(store) as catalog:
        catalog.base_add("tiny", tiny.base)
    register = ("register", str(tiny.first), "--name", "bot", "--base", "tiny")
    child = subprocess.Popen(
        [sys.executable, "-m", "server.cli.main", "--store", str(store), *register],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert child.stderr is not None
    assert "checking" in child.stderr.readline()
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    _, complaint = child.communicate(timeout=60)
    cli = CommandLine(("--store", str(store)))
    if child.returncode != 0:  # a fast machine may have been done
        assert child.returncode == 130
        *progress, said = complaint.splitlines()
        assert said.startswith("adapterctl: interrupted")
        assert not any("Traceback" in line for line in progress)
        assert cli.ok("ls") == []
    assert list((store / "staging").iterdir()) == []
    assert cli.ok(*register)["version"] == "v1"
