"""What a format reader hands on: config, tensors by name with shapes known, where it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from adapters.models import BaseDescriptor


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is not read yet. `dtype` is the safetensors name (BF16, F32, …).

    `load` reads it (contiguous, on the CPU, of exactly this dtype and shape) and raises
    DamagedArtifact when the file no longer holds what its header said.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an artifact came from: the directory read, the files that matter, what they tell."""

    source: Path
    files: tuple[Path, ...]
    base_by_trainer: str | None = None
    trainer: str | None = None
    trainer_version: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RawAdapter:
    """An artifact as its format says it lies, nothing judged yet.

    `config` has PEFT's keys and `tensors` PEFT's names and layout whatever the format: a reader
    of another format translates. Each tensor's own `name` is the one in the file, for messages.
    """

    format: str
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    provenance: Provenance
    # Other files beside the adapter that change what it is (a value head, say).
    extras: tuple[str, ...] = field(default=())
    # What only the base tells (how many heads its attention has, say): gives the adapter again,
    # translated to the end. None: nothing is left to translate.
    for_base: Callable[[BaseDescriptor], RawAdapter] | None = None
