"""The header of a GGUF file, read with every length bounded by the file, without mapping it.

Layout (ggml's docs/gguf.md): magic, version, counts, key-values, tensor infos, padding, data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adapters.errors import DamagedArtifact, SourceUnreadable

MAX_HEADER_BYTES = 32_000_000
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i",
    6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
# An array longer than this (a tokenizer's, in a whole model) is read over, not kept.
_KEPT_ITEMS = 4096
_MAX_DIMENSIONS = 4

# ggml type -> name, items a block, bytes a block.
TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    8: ("Q8_0", 32, 34),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its type, its shape as numpy has it (ggml's reversed), its place in the file."""

    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """Key-values and tensors of a file."""

    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class _Cursor:
    """Reads forward; every read is bounded by the file and by MAX_HEADER_BYTES."""

    def __init__(self, file: BinaryIO, name: str):
        self._file = file
        self.name = name
        self.size = file.seek(0, 2)
        file.seek(0)
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > min(self.size, MAX_HEADER_BYTES):
            raise damaged(self.name, "is truncated or damaged: its header goes on past its end")
        data = self._file.read(count)
        if len(data) != count:
            raise damaged(self.name, "changed while it was read")
        self.at += count
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")


def damaged(name: str, what: str) -> DamagedArtifact:
    return DamagedArtifact(f"{name} {what}; copy or convert the adapter again")


def read_gguf_header(path: Path) -> Gguf:
    """The header of `path`, proved against its size; raises DamagedArtifact, SourceUnreadable."""
    try:
        with path.open("rb") as file:
            return _header(_Cursor(file, path.name))
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault


def _header(cursor: _Cursor) -> Gguf:
    if cursor.size == 0:
        raise damaged(cursor.name, "is empty")
    if cursor.size < 24 or cursor.take(4) != b"GGUF":
        raise damaged(cursor.name, "is no GGUF file")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise damaged(
            cursor.name, f"has GGUF version {version}; 2 and 3 (little-endian) are supported"
        )
    tensor_count, value_count = cursor.number("<Q"), cursor.number("<Q")
    values: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.text()
        if key in values:
            raise damaged(cursor.name, f"has the key '{key[:60]}' twice")
        values[key] = _value(cursor, cursor.number("<I"))
    infos = [_info(cursor) for _ in range(tensor_count)]
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise damaged(cursor.name, f"has the alignment {alignment!r:.40}")
    data_start = -(-cursor.at // alignment) * alignment
    return Gguf(values, _placed(cursor, infos, data_start))


def _value(cursor: _Cursor, kind: int, *, nested: bool = False) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY or nested:
        raise damaged(cursor.name, f"is damaged: a value of the unknown type {kind}")
    item, count = cursor.number("<I"), cursor.number("<Q")
    if item in _SCALARS:
        size = struct.calcsize(_SCALARS[item])
        data = cursor.take(count * size)[: _KEPT_ITEMS * size]
        return [value for (value,) in struct.iter_unpack(_SCALARS[item], data)]
    kept = []
    for index in range(count):
        value = _value(cursor, item, nested=True)
        if index < _KEPT_ITEMS:
            kept.append(value)
    return kept


def _info(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = cursor.text(), cursor.number("<I")
    if dimensions > _MAX_DIMENSIONS:
        raise damaged(cursor.name, f"is damaged: '{name[:80]}' has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    return name, cursor.number("<I"), shape, cursor.number("<Q")


def _placed(
    cursor: _Cursor, infos: list[tuple[str, int, tuple[int, ...], int]], data_start: int
) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in infos:
        if name in found:
            raise damaged(cursor.name, f"names '{name[:80]}' twice")
        if kind not in TYPES:
            raise DamagedArtifact(
                f"'{name}' in {cursor.name} is of ggml type {kind}; an adapter's tensors are "
                "F32, F16, BF16 or Q8_0: convert it again with one of these"
            )
        label, items, size = TYPES[kind]
        count = math.prod(shape)
        if count % items or (items > 1 and (not shape or shape[-1] % items)):
            raise damaged(
                cursor.name, f"is damaged: '{name}' of shape {list(shape)} is no {label} tensor"
            )
        start = data_start + offset
        end = start + count // items * size
        if end > cursor.size:
            raise damaged(
                cursor.name,
                f"is truncated: '{name}' should end at byte {end}, the file is {cursor.size} long",
            )
        found[name] = GgufTensor(label, shape, start, end)
    return found
