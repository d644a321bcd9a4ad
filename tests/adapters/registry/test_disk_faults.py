"""A full disk and a read-only one, for real: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("disk_faults_child.py")
ROOT = Path(__file__).parents[3]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def namespaces_work() -> bool:
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not namespaces_work(), reason="needs unprivileged mount namespaces")
@pytest.mark.parametrize("scenario", ["full", "read-only", "read-only-after-crash"])
def test_disk(scenario: str, tmp_path: Path) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        [*NAMESPACE, sys.executable, str(CHILD), str(mount), scenario],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
