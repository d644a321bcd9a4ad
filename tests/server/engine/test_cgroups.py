"""How much memory there is, in containers of either version and without one."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from server.engine.cgroups import machine_memory

MIB = 1024**2


def group(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "mount"


def test_without_a_bound_it_is_the_machines(proc: Path, mount: Path) -> None:
    memory = psutil.virtual_memory()
    found = machine_memory(proc, mount)
    assert found.total == memory.total
    assert 0 < found.available <= memory.total
    proc.write_text("0::/a/b\n")
    group(mount / "a" / "b", memory__max="max\n", memory__current="5\n")
    assert machine_memory(proc, mount).total == memory.total


def test_the_nearest_bound_of_all_groups_above_counts(proc: Path, mount: Path) -> None:
    proc.write_text("0::/a/b\n")
    group(mount, memory__max="max\n")
    group(
        mount / "a",
        memory__max=f"{64 * MIB}\n",
        memory__current=f"{40 * MIB}\n",
        memory__stat=f"anon 7\ninactive_file {10 * MIB}\n",
    )
    group(mount / "a" / "b", memory__max=f"{100 * MIB}\n", memory__current=f"{90 * MIB}\n")
    found = machine_memory(proc, mount)
    assert found.total == 64 * MIB
    # Of a's 64, 30 cannot be dropped; of b's 100, 90.
    assert found.available == 10 * MIB


def test_version_1_has_a_hierarchy_of_its_own(proc: Path, mount: Path) -> None:
    proc.write_text("5:cpu:/x\n4:memory:/pods/one\n0::/\n")
    group(
        mount / "memory" / "pods" / "one",
        memory__limit_in_bytes=f"{80 * MIB}\n",
        memory__usage_in_bytes=f"{50 * MIB}\n",
        memory__stat=f"cache 1\ntotal_inactive_file {20 * MIB}\n",
    )
    group(mount / "memory", memory__limit_in_bytes="9223372036854771712\n")
    found = machine_memory(proc, mount)
    assert (found.total, found.available) == (80 * MIB, 50 * MIB)


def test_inside_a_container_the_mounts_root_is_our_own_group(proc: Path, mount: Path) -> None:
    proc.write_text("0::/../../host/pod\n")
    group(mount, memory__max=f"{32 * MIB}\n", memory__current=f"{40 * MIB}\n")
    found = machine_memory(proc, mount)
    assert (found.total, found.available) == (32 * MIB, 0)


def test_nonsense_bounds_nothing(proc: Path, mount: Path) -> None:
    proc.write_text("what\n0::/\nx:y\n")
    group(mount, memory__max="many\n", memory__stat="inactive_file\n")
    assert machine_memory(proc, mount).total == psutil.virtual_memory().total
