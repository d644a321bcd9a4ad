"""Which torch a tool's environment gets: the CPU build that is locked, or a GPU build."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TORCH_SETTING = "ADAPTERCTL_TOOLS_TORCH"
_CPU_LOCK = "torch-cpu"


@dataclass(frozen=True, slots=True)
class Torch:
    """A requirement; `locked` where its hash is in locks/torch-cpu.txt."""

    requirement: str
    cpu: bool
    locked: bool

    def arguments(self, locks: Path) -> list[str]:
        """What `uv pip install` is given for it."""
        if not self.cpu:
            # With its CUDA libraries, which no lock of ours names.
            return [self.requirement]
        arguments = ["--no-deps"]
        if not any(_local_wheels()):
            # torch's CPU wheels are on PyTorch's own index only.
            arguments.append("--torch-backend=cpu")
        if self.locked:
            return [*arguments, "--require-hashes", "-r", str(locks / f"{_CPU_LOCK}.txt")]
        return [*arguments, "-r", str(locks / f"{_CPU_LOCK}.in")]


def chosen_torch() -> Torch:
    """What ADAPTERCTL_TOOLS_TORCH asks for, else the build that adapterctl itself runs on."""
    named = os.environ.get(TORCH_SETTING)
    if named:
        return Torch(named, cpu=False, locked=False)
    try:
        own = metadata.version("torch")
    except metadata.PackageNotFoundError:
        own = "+cpu"
    if not own.endswith("+cpu"):
        return Torch(f"torch=={own.partition('+')[0]}", cpu=False, locked=False)
    # The hash that is locked is this build's; elsewhere the version is pinned.
    locked = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
    return Torch(_CPU_LOCK, cpu=True, locked=locked)


def _local_wheels() -> list[Path]:
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    places = [place for place in links.replace(",", " ").split() if "://" not in place]
    return [wheel for place in places for wheel in Path(place).glob("torch-*.whl")]
