"""Both stored forms' two files, written the same way every time: sorted, aligned, no slack."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import DamagedArtifact, InvalidConfig
from adapters.frozen import Lane
from adapters.intake import tensors
from adapters.store.durable import store_error

if TYPE_CHECKING:
    import torch

# The largest fp16 value. Trained factors, scale included, are orders of magnitude smaller.
MAX_MAGNITUDE = 65504.0

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write: its name, the one it had in the source, and what it must turn out as."""

    name: str
    source: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * tensors.item_size(self.dtype)


def write_adapter(
    entries: Sequence[Entry],
    config: Mapping[str, Any],
    lane: Lane,
    staging: Path,
    progress: Callable[[int], None],
) -> None:
    """Write both files into `staging`, tensor by tensor; not fsynced.

    `progress` is told the bytes of each tensor written. Raises DamagedArtifact when the source
    changed since it was proved, StoreError when `staging` cannot be written.
    """
    # Widest dtype first, then by name: as safetensors orders them, so that all is aligned.
    ordered = sorted(entries, key=lambda entry: (-tensors.item_size(entry.dtype), entry.name))
    try:
        text = json.dumps(config, sort_keys=True, indent=2) + "\n"
    except RecursionError:
        raise InvalidConfig(f"{CONFIG} is nested too deeply to be written again") from None
    try:
        (staging / CONFIG).write_text(text, encoding="utf-8")
        with (staging / WEIGHTS).open("wb") as file:
            file.write(_header(ordered, lane))
            for entry in ordered:
                file.write(_proved_bytes(entry))
                progress(entry.size)
    except OSError as fault:
        raise store_error(staging, fault) from fault


def check_bound(values: torch.Tensor, name: str, subject: str = "it") -> torch.Tensor:
    """The extremes of `values`; raises DamagedArtifact for a value that half precision lacks."""
    low_and_high = tensors.extremes(values)
    if not tensors.within(low_and_high, MAX_MAGNITUDE):
        count = tensors.count_beyond(values, MAX_MAGNITUDE)
        raise DamagedArtifact(
            f"tensor '{name}': {subject} has {count} value{'s' if count > 1 else ''} beyond "
            f"±{MAX_MAGNITUDE:g}, too large for half precision and for any trained adapter; "
            "an engine would overflow on it"
        )
    return low_and_high


def _header(entries: Sequence[Entry], lane: Lane) -> bytes:
    metadata = {"format": "pt"}
    if lane is not Lane.HOT:
        # Engines see the files only: this keeps one from loading what it would serve wrongly.
        metadata["lane"] = lane.value
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.size],
        }
        at += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _proved_bytes(entry: Entry) -> memoryview:
    values = entry.load()
    if tensors.dtype_of(values) != entry.dtype or tuple(values.shape) != entry.shape:
        raise DamagedArtifact(f"tensor '{entry.source}' changed while it was read; try again")
    return tensors.raw_bytes(values)
