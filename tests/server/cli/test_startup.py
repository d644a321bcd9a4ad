"""`adapterctl ls` answers in a fraction of a second: it imports nothing it does not need."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.cli.command_line import clean_environment

HEAVY = {
    "aiohttp",
    "alembic",
    "fastapi",
    "httpx",
    "numpy",
    "rapidfuzz",
    "sqlalchemy",
    "starlette",
    "torch",
    "tqdm",
    "transformers",
    "uvicorn",
    "vllm",
}


@pytest.mark.parametrize("command", [["ls"], ["show", "bot"], ["base", "ls"], ["history", "bot"]])
def test_reading_commands_import_nothing_heavy(small_store: Path, command: list[str]) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-X", "importtime", "-m", "server.cli.main"),
            *("--store", str(small_store), *command),
        ],
        capture_output=True,
        text=True,
        env=clean_environment(),
        check=True,
    )
    imported = set(re.findall(r"\| +([A-Za-z_]\w*)", done.stderr))
    assert "click" in imported, "the trace was not understood"
    assert imported & HEAVY == set()


def test_ls_answers_in_half_a_second(small_store: Path) -> None:
    """Processor time, the best of five: what else the machine does must not decide."""
    best = min(_seconds(small_store) for _ in range(5))
    assert best < 0.5


def _seconds(store: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "server.cli.main", "--store", str(store), "ls"],
        capture_output=True,
        env=clean_environment(),
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
