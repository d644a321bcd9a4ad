"""What a job will need of disks and memory, and whether it is there: before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from adapters.errors import Conflict, DiskFull
from quantize.merging.workspace import gigabytes

# An engine without its weights and its cache (1.3 GiB measured on a CPU).
ENGINE_BYTES = 1_500_000_000
# A quantizer's libraries and the activations of one layer.
TOOL_BYTES = 800_000_000


def check_disks(needed: Iterable[tuple[Path, int]]) -> None:
    """Raises DiskFull unless each (directory, bytes) fits; those on one disk are added up.

    What an earlier run left in a directory counts as there already.
    """
    by_disk: dict[int, tuple[Path, int]] = {}
    for directory, count in needed:
        place = _existing(directory)
        device = place.stat().st_dev
        left = max(0, count - _used(directory))
        first, total = by_disk.get(device, (place, 0))
        by_disk[device] = (first, total + left)
    for place, total in by_disk.values():
        free = shutil.disk_usage(place).free
        if total > free:
            raise DiskFull(
                f"the job needs {gigabytes(total)} on the disk of {place}, {gigabytes(free)} are "
                "free: free some, or write elsewhere"
            )


def check_memory(needed: Mapping[str, int]) -> None:
    """Raises Conflict unless the largest of `needed` (for what -> bytes) is available."""
    purpose, most = max(needed.items(), key=lambda item: item[1], default=("", 0))
    available = available_memory()
    if most > available:
        raise Conflict(
            f"{purpose} needs about {gigabytes(most)} of memory, {gigabytes(available)} are "
            "available: end something else, or take a machine with more"
        )


def available_memory() -> int:
    """Bytes that a new process can have: free memory and swap, within the cgroup's limit."""
    free = int(psutil.virtual_memory().available + psutil.swap_memory().free)
    limit, used = (_cgroup(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        # The page cache is counted as used and given up when needed: half of a limit at least.
        free = min(free, max(limit - used, limit // 2))
    return free


def _cgroup(name: str) -> int | None:
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):
        return None


def _existing(directory: Path) -> Path:
    return next(path for path in (directory, *directory.parents) if path.is_dir())


def _used(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            total += (Path(folder) / name).lstat().st_size
    return total
