"""The header of a safetensors file, read and proved without a tensor library.

Layout (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length N,
N bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from adapters.json_keys import repeated_key

# The reference implementation's own limit; also what keeps a hostile length from taking memory.
MAX_HEADER_BYTES = 100_000_000

ITEM_SIZE: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}


class HeaderError(ValueError):
    """What is wrong with a file, as the end of a sentence whose subject is the file.

    Callers know whether it is an adapter's or a base's file and raise their own error.
    """


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: safetensors dtype, shape, and its place in the file [start, end) in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole file: tensors by name, the raw header (with its length) and the file's size."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    raw: bytes
    file_size: int


def read_header(path: Path) -> Header:
    """The header of `path`, proved against the file's size; raises HeaderError or OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size == 0:
            raise HeaderError("is empty")
        if size < 8:
            raise HeaderError(f"is {size} bytes long, too short for a safetensors file")
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0]
        if length > min(MAX_HEADER_BYTES, size - 8):
            if prefix[:4] == b"GGUF":
                raise HeaderError("is a GGUF file, not safetensors")
            raise HeaderError(
                f"is truncated or no safetensors file: its header should be {length} bytes long, "
                f"the file is {size}"
            )
        body = file.read(length)
    if len(body) != length:
        raise HeaderError("changed while it was read")
    entries = _parse(body)
    metadata = entries.pop("__metadata__", None)
    if metadata is None:  # MLX writes null
        metadata = {}
    if not isinstance(metadata, dict):
        raise HeaderError("is damaged: its metadata is not an object")
    tensors = {name: _tensor(name, entry, 8 + length) for name, entry in entries.items()}
    _prove_contiguous(tensors, 8 + length, size)
    return Header(
        tensors=tensors,
        metadata={str(k): str(v) for k, v in metadata.items()},
        raw=prefix + body,
        file_size=size,
    )


def _parse(body: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(body, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as fault:
        if isinstance(fault, HeaderError):
            raise
        raise HeaderError("is damaged: its header is not JSON") from None
    if not isinstance(entries, dict):
        raise HeaderError("is damaged: its header is not a JSON object")
    return entries


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = repeated_key(pairs)
    if twice is not None:
        raise HeaderError(f"names '{twice}' twice in its header")
    return dict(pairs)


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise HeaderError(f"is damaged: the header's entry of '{name}' is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise HeaderError(f"holds '{name}' in the unknown dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise HeaderError(f"is damaged: shape or place of '{name}' is not a list of numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise HeaderError(
            f"is damaged: '{name}' of shape {shape} in {dtype} cannot take {end - begin} bytes"
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _prove_contiguous(tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """No gap, no overlap, nothing after the last tensor, and the file as long as it says."""
    at = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != at:
            raise HeaderError(f"is damaged: '{name}' overlaps another tensor or leaves a gap")
        at = tensor.end
    if at > size:
        raise HeaderError(f"is truncated: it should be {at} bytes long and is {size}")
    if at < size:
        raise HeaderError(f"is damaged: {size - at} bytes follow its last tensor")
