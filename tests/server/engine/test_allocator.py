"""What an engine frees it has again for the next step, without the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.engine.allocator import kept_memory
from tests.server.engine.test_command import merged

# Tensors of a step, again and again; printed are the page faults of the second half.
_STEPS = """
import resource

def step():
    for size in (3, 12, 25, 40, 12):
        b"x" * (size << 20)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(5)
print(faults(5))
"""


def page_faults(settings: Mapping[str, str]) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _STEPS],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_steps_memory_is_kept_for_the_next_step() -> None:
    assert page_faults(kept_memory({})) < 200
    # That the count can tell: 92 MiB a step, each page of them again.
    assert page_faults({"MALLOC_MMAP_THRESHOLD_": "131072"}) > 50_000


@pytest.mark.parametrize(
    "chosen",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"},
        {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2:/opt/libiomp5.so"},
    ],
)
def test_what_the_user_chose_stays(chosen: dict[str, str]) -> None:
    assert kept_memory(chosen) == {}


def test_every_engine_on_a_cpu_is_started_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    command = merged(tmp_path)
    assert command.environment["GLIBC_TUNABLES"] == kept_memory({})["GLIBC_TUNABLES"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert merged(tmp_path).environment["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
