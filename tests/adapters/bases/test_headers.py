"""safetensors headers: read as the reference library does, and refused when they lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapters.bases.headers import HeaderError, read_header


def _file(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_agrees_with_the_reference_library(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == set(header.tensors)
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            piece = file.get_slice(name)
            assert header.tensors[name].dtype == piece.get_dtype()
            assert header.tensors[name].shape == tuple(piece.get_shape())
    assert header.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": _entry("F32", [2], 0, 4)}, b"\0" * 4, "cannot take 4 bytes"),
        ({"a": _entry("F32", [1], 4, 8)}, b"\0" * 8, "leaves a gap"),
        ({"a": _entry("F32", [1], 0, 4), "b": _entry("F32", [1], 0, 4)}, b"\0" * 4, "overlaps"),
        ({"a": _entry("F32", [1], 0, 4)}, b"\0" * 3, "is truncated"),
        ({"a": _entry("F32", [1], 0, 4)}, b"\0" * 5, "1 bytes follow"),
        ({"a": _entry("F99", [1], 0, 4)}, b"\0" * 4, "unknown dtype 'F99'"),
        ({"a": _entry("F32", [-1], 0, 4)}, b"\0" * 4, "not a list of numbers"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"", "not a list"),
        ({"a": [1]}, b"", "not an object"),
        ({"__metadata__": 3}, b"", "metadata"),
        ([], b"", "not a JSON object"),
        (b'{"a": 1, "a": 1}', b"", "'a' twice"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"\xff\xfe", b"", "not JSON"),
    ],
)
def test_a_lying_header_is_refused(header: Any, data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(HeaderError) as refused:
        read_header(_file(tmp_path / "x.safetensors", header, data))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"1234567", "too short"),
        (b"GGUF" + b"\3" * 60, "GGUF file"),
        (b"\xff" * 8 + b"{}", "truncated or no safetensors"),
    ],
)
def test_what_is_no_safetensors_file(raw: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(HeaderError, match=says):
        read_header(tmp_path / "x")
