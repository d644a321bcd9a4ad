"""Which torch a tool's environment gets: the CPU build that is locked, or a GPU build."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TORCH_SETTING = "ADAPTERCTL_TOOLS_TORCH"
_CPU_LOCK = "torch-cpu.txt"
_CPU_PIN = "torch-cpu.in"


@dataclass(frozen=True, slots=True)
class Torch:
    """A requirement, or the file of locks/ that names it."""

    requirement: str
    lock: str | None = None

    def arguments(self, locks: Path) -> list[str]:
        """What `uv pip install` is given for it."""
        if self.lock is None:
            # A GPU build, with its CUDA libraries, which no lock of ours names.
            return [self.requirement]
        # torch's CPU wheels are on PyTorch's own index only.
        index = [] if _local_wheels() else ["--torch-backend=cpu"]
        hashes = ["--require-hashes"] if self.lock.endswith(".txt") else []
        return ["--no-deps", *index, *hashes, "-r", str(locks / self.lock)]


def chosen_torch() -> Torch:
    """What ADAPTERCTL_TOOLS_TORCH asks for, else the build that adapterctl itself runs on."""
    named = os.environ.get(TORCH_SETTING)
    if named:
        return Torch(named)
    try:
        own = metadata.version("torch")
    except metadata.PackageNotFoundError:
        own = "+cpu"
    if not own.endswith("+cpu"):
        return Torch(f"torch=={own.partition('+')[0]}")
    # The hash that is locked is this build's; elsewhere the version is pinned.
    locked = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
    return Torch("", _CPU_LOCK if locked else _CPU_PIN)


def _local_wheels() -> list[Path]:
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    places = [place for place in links.replace(",", " ").split() if "://" not in place]
    return [wheel for place in places for wheel in Path(place).glob("torch-*.whl")]
