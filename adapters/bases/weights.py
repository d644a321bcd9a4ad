"""A base's weights, one tensor at a time, for methods whose meaning depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.bases.digest import digest_of
from adapters.bases.shards import BaseFiles, open_base, stored_name
from adapters.errors import BaseError
from adapters.models import BaseDescriptor

if TYPE_CHECKING:
    from adapters.bases.headers import TensorInfo


class BaseWeights:
    """Where the tensors of a base lie. Its files are opened, and proved to be those that were
    registered, when the first tensor is asked for."""

    def __init__(self, base: BaseDescriptor, directory: Path):
        self._base = base
        self._directory = directory

    @cached_property
    def _files(self) -> BaseFiles:
        files = open_base(self._directory)
        if digest_of(files) != self._base.digest:
            raise BaseError(
                f"the base in {self._directory} is not the one that was registered: its files have "
                "changed; add it again under another name"
            )
        return files

    @property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""
        return self._files.config

    def places(self) -> dict[str, tuple[Path, TensorInfo]]:
        """Every tensor by its name in the checkpoint: the file and where in it."""
        found = self._files.tensors().items()
        return {name: (self._files.root / shard, info) for name, (shard, info) in found}

    def place(self, module: str) -> tuple[Path, TensorInfo] | None:
        """The file with `module`'s weight and where in it; None if no file has it by that name."""
        return self._place(f"{module}.weight")

    def parameter(self, name: str) -> tuple[Path, TensorInfo] | None:
        """The same for any parameter of the model; None if there is none of its own (tied)."""
        stored = stored_name(self._files, name)
        return None if stored is None else self._place(stored)

    def _place(self, name: str) -> tuple[Path, TensorInfo] | None:
        found = self._files.tensors().get(name)
        return None if found is None else (self._files.root / found[0], found[1])
