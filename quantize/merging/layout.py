"""What the merged checkpoint looks like before a byte of it is written: shards, order, headers."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from adapters.bases.headers import ITEM_SIZE, Header, TensorInfo
from adapters.bases.shards import BaseFiles, stored_name
from adapters.errors import BaseError
from adapters.intake.lora import FLOATS
from adapters.intake.merging import Edit, MergePlan, weight_of
from adapters.intake.tied import input_embedding, output_head
from adapters.models import BaseDescriptor

if TYPE_CHECKING:
    import torch

STORED_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


# Rows [start, end) of a parameter as a matrix, in the dtype in which a merge computes.
Rows = Callable[[int, int], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Made:
    """How values that no file holds as they are used are computed.

    `open()` reads what all rows need and gives the rows, for one thread. `by_rows` False: all of
    the parameter is in memory from then on.
    """

    open: Callable[[], Rows]
    by_rows: bool


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the base: the shard it is in and where.

    With `made` its values are not the bytes there but what that makes; `info` has their shape and
    the dtype that the model keeps them in.
    """

    path: Path
    info: TensorInfo
    made: Made | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of the merged checkpoint.

    Without edits it is the base's at `source`, which has a place wherever there are none. `source`
    is also what a change is measured against.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Place | None
    edits: tuple[Edit, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    @property
    def copied(self) -> bool:
        """Is it the base's, bit by bit?"""
        source = self.source
        if self.edits or source is None or source.made is not None:
            return False
        return source.info.dtype == self.dtype


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of the merged checkpoint: its header and its tensors in the order of their bytes."""

    name: str
    header: bytes
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(slot.size for slot in self.slots)


class Places:
    """Where the base keeps its parameters, by the model's names for them.

    `made`, by the checkpoint's names: what takes the place of values as they are stored.
    """

    def __init__(self, files: BaseFiles, made: Mapping[str, Made] = MappingProxyType({})) -> None:
        self._files = files
        self._tensors = files.tensors()
        self._made = made

    def of(self, parameter: str) -> Place | None:
        stored = stored_name(self._files, parameter)
        return None if stored is None else self.stored(stored)

    def stored(self, name: str) -> Place:
        shard, info = self._tensors[name]
        return Place(self._files.root / shard, info, self._made.get(name))


def planned_shards(
    files: BaseFiles,
    base: BaseDescriptor,
    plan: MergePlan,
    dtype: str | None,
    places: Places | None = None,
) -> tuple[Shard, ...]:
    """The base's shards with its tensors in its order, some of them changed.

    New parameters come at the end of the last shard. `dtype` (bfloat16, …) is that of every
    floating-point tensor; with None each keeps its own. `places` None: as they are stored. Raises
    BaseError for a parameter that the base does not keep in plain floats.
    """
    places = places or Places(files)
    wanted = None if dtype is None else STORED_DTYPE[dtype]
    edits, new = _by_stored_name(files, base, plan)
    shards = []
    last = max(files.shards)
    for name, header in sorted(files.shards.items()):
        slots = [
            _slot(stored, places.stored(stored), edits.get(stored, ()), wanted)
            for stored in header.tensors
        ]
        if name == last:
            slots += [_added(item, places, base, wanted) for item in new.values()]
        shards.append(_shard(name, header, slots))
    return tuple(shards)


def _by_stored_name(
    files: BaseFiles, base: BaseDescriptor, plan: MergePlan
) -> tuple[dict[str, tuple[Edit, ...]], dict[str, tuple[Edit, ...]]]:
    """The edits of each tensor of the checkpoint; those of parameters that it does not have."""
    edits: dict[str, tuple[Edit, ...]] = {}
    new: dict[str, tuple[Edit, ...]] = {}
    for edit in plan.edits:
        stored = stored_name(files, edit.parameter)
        target, name = (new, edit.parameter) if stored is None else (edits, stored)
        target[name] = (*target.get(name, ()), edit)
    if base.tied_embeddings and plan.base_config.get("tie_word_embeddings") is not False:
        _keep_copies_alike(files, base, edits)
    return edits, new


def _keep_copies_alike(
    files: BaseFiles, base: BaseDescriptor, edits: dict[str, tuple[Edit, ...]]
) -> None:
    """Some checkpoints of tied models hold the head as well: it stays the embedding's copy."""
    embedding, head = input_embedding(base), output_head(base)
    if embedding is None or head is None:
        return
    source, copy = (stored_name(files, weight_of(spec)[0]) for spec in (embedding, head))
    if source is not None and copy is not None and source in edits:
        edits[copy] = edits[source]


def _slot(name: str, place: Place, edits: tuple[Edit, ...], wanted: str | None) -> Slot:
    own = place.info.dtype
    if edits and own not in FLOATS:
        raise BaseError(
            f"the base keeps '{name}' as {own}, which nothing can be merged into: register the "
            "adapter for the base's original 16-bit weights"
        )
    dtype = wanted if wanted is not None and own in FLOATS else own
    return Slot(name, dtype, edits[-1].shape if edits else place.info.shape, place, edits)


def _added(
    edits: tuple[Edit, ...], places: Places, base: BaseDescriptor, wanted: str | None
) -> Slot:
    first, read = edits[0], None
    if first.reads is not None:
        read = places.of(first.reads)
        if read is None or read.info.dtype not in FLOATS:
            raise BaseError(
                f"the base keeps no floating-point '{first.reads}', from which "
                f"'{first.parameter}' would be made"
            )
    own = read.info.dtype if read is not None else STORED_DTYPE.get(base.dtype, "F32")
    return Slot(first.parameter, wanted or own, edits[-1].shape, read, edits)


def _shard(name: str, header: Header, slots: Sequence[Slot]) -> Shard:
    """Entries as the base's header lists them, bytes as they lie there, new tensors after them."""
    starts = {stored: info.start for stored, info in header.tensors.items()}
    ordered = sorted(slots, key=lambda slot: starts.get(slot.name, header.file_size))
    if not _aligned(ordered):
        # As the reference writer does it; readers cannot view what lies askew.
        ordered.sort(key=lambda slot: -ITEM_SIZE[slot.dtype])
    at, entries = 0, {}
    for slot in ordered:
        entries[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [at, at + slot.size],
        }
        at += slot.size
    listed = {slot.name: entries[slot.name] for slot in slots}
    # transformers refuses files that do not say for which library they are.
    metadata = {"format": "pt", **header.metadata}
    body = json.dumps({"__metadata__": metadata, **listed}, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    return Shard(name, struct.pack("<Q", len(body)) + body, tuple(ordered))


def _aligned(slots: Iterable[Slot]) -> bool:
    at = 0
    for slot in slots:
        if at % ITEM_SIZE[slot.dtype]:
            return False
        at += slot.size
    return True
