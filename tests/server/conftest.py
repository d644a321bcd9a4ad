"""Workers that start at once, for tests of something else than how workers start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gateway import admin_jobs
from tests.server.worker_forks import Start, forking


@pytest.fixture(scope="session")
def start_worker() -> Iterator[Start]:
    # A unix socket's path has 108 bytes at most; the tests' own directories are longer.
    with (
        tempfile.TemporaryDirectory(prefix="workers-") as directory,
        forking(Path(directory) / "socket") as start,
    ):
        yield start


@pytest.fixture(scope="module")
def quick_workers(start_worker: Start) -> Iterator[None]:
    """The gateway's workers need not import torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admin_jobs, "_start", start_worker)
        yield
