"""Where the files of deploy/ are, and what several of their tests ask."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.settings import ENV_PREFIX, ServeSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# Read by the command line, the engines or jobs rather than as settings of `serve`.
OTHER_VARIABLES = {"ADAPTERCTL_STORE", "ADAPTERCTL_URL", "ADAPTERCTL_KEY"}


def tool(name: str) -> str:
    """A program of the environment or of the system; skips the test where neither has it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (.ci/packages installs what Debian has)")
    return found


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command, ended, with its output; any exit code."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def unknown_variables(names: Sequence[str]) -> list[str]:
    """Those of ADAPTERCTL_… that mean nothing to adapterctl."""
    known = {ENV_PREFIX + name.upper() for name in ServeSettings.model_fields} | OTHER_VARIABLES
    return [name for name in names if name.startswith(ENV_PREFIX) and name not in known]
