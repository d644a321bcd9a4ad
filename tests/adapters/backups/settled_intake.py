"""The small intake, with a canonical form that stays as it is when it is taken in again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from adapters.catalog import Catalog
from adapters.errors import DamagedArtifact
from adapters.models import Approximate, BaseDescriptor, Manifest
from adapters.registry.intake_port import Progress
from tests.adapters.registry.small_intake import WEIGHTS, SmallIntake, write_base, write_source

CONFIG = "adapter_config.json"


class SettledIntake(SmallIntake):
    """Copies what has the configuration of its own canonical form; refuses what is not finite."""

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        alpha: float | None = None,
        progress: Progress | None = None,
        approximate: Approximate | None = None,
    ) -> Manifest:
        if (source / WEIGHTS).is_file():
            for name, tensor in load_file(source / WEIGHTS).items():
                if not np.isfinite(tensor).all():
                    raise DamagedArtifact(f"{name} is not finite")
        manifest = super().take_in(
            source, base=base, staging=staging, format=format, alpha=alpha, progress=progress
        )
        if (source / CONFIG).is_file():
            for name in (WEIGHTS, CONFIG):
                shutil.copyfile(source / name, staging / name)
        return manifest


class Stores:
    """Stores with the base `small` below one directory."""

    def __init__(self, root: Path):
        self.root = root

    def new(self, name: str, base: str = "small", seed: int = 0) -> Catalog:
        """A fresh store; its base is the same model as in the others of that seed."""
        catalog = Catalog.init(self.root / name, intake=SettledIntake())
        catalog.base_add(base, write_base(self.root / f"base-{seed}", seed))
        return catalog

    def register(
        self, catalog: Catalog, seed: int, name: str = "bot", tag: str | None = None
    ) -> str:
        """Registers the artifact with that seed; returns the version's label."""
        source = write_source(self.root / f"source-{seed}", seed)
        base = catalog.bases()[0].name
        return catalog.register(str(source), name=name, base=base, tag=tag, actor="ann").version


def tree(root: Path) -> dict[str, str]:
    """Every file below a directory with the sha256 of its content."""
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def fail_after(count: int, raised: Callable[[], BaseException]) -> Callable[[int], None]:
    """A stand-in for os.fsync that raises at the call after `count` of them."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > count:
            raise raised()

    return fsync
