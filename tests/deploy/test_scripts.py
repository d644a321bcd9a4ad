"""Shell scripts, read by a linter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.places import ROOT, run, tool


def _scripts() -> list[Path]:
    found = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
    files = [ROOT / name for name in found if name and (ROOT / name).is_file()]
    return [file for file in files if _is_shell(file)]


def _is_shell(file: Path) -> bool:
    if file.suffix == ".sh":
        return True
    with file.open("rb") as opened:
        first = opened.readline(64)
    return first.startswith(b"#!") and first.strip().split(b"/")[-1] in {
        b"sh", b"bash", b"env bash",
    }  # fmt: skip


SCRIPTS = _scripts()


def test_there_are_scripts() -> None:
    assert {"run", "packages", "prepare.sh"} <= {file.name for file in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_linter_finds_nothing(script: Path) -> None:
    done = run(tool("shellcheck"), "--enable=quote-safe-variables", script)
    assert (done.returncode, done.stdout) == (0, "")
