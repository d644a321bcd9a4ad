"""How much memory this process may use: the machine's, or less where a container bounds it.

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory: `memory.max` of every group from our own
up to the root counts; version 1 has `memory.limit_in_bytes` in a hierarchy of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory: what there is for us at most, and what of it is free now."""

    total: int
    available: int


def machine_memory(proc: Path = PROC, mount: Path = MOUNT) -> Machine:
    """What this process may use, whoever bounds it."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in _bounds(proc, mount):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Machine(total, available)


def _bounds(proc: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Limit and use (bytes) of each group that bounds us; caches that can be dropped are not use.

    Inside a container the path in /proc names a group of the host that is not to be seen: its own
    is then the mount's root.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        for directory in _upwards(root, path):
            limit = _number(directory / names[0])
            if limit is not None:
                used = _number(directory / names[1]) or 0
                dropped = _stat(directory / "memory.stat", names[2])
                yield limit, max(0, used - dropped)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's directory and all above it, as far as they are to be seen here."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for count in range(len(parts), -1, -1):
        directory = root.joinpath(*parts[:count])
        if directory.is_dir():
            yield directory


def _number(file: Path) -> int | None:
    """None: no such file, or `max`."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(file: Path, key: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{key} ")]
    return int(found[0]) if found and found[0].isdigit() else 0
