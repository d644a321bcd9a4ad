"""The one door to torch: tensors out of files, safely, and what is computed with them.

safetensors are read with `pread`, never mapped: a file that shrinks while it is read then gives
an error and not a SIGBUS. Pickles are opened with `weights_only=True` and nothing else.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch

from adapters.bases.headers import ITEM_SIZE, HeaderError, TensorInfo, read_header
from adapters.errors import DamagedArtifact, SourceUnreadable, UnsafePickle
from adapters.intake.raw import LazyTensor

TORCH_DTYPE: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}
DTYPE_NAME = {dtype: name for name, dtype in TORCH_DTYPE.items()}
# Legacy files name their storages one by one and torch reads them; only the zip form is bounded.
_MAX_PICKLE_BYTES = 16 << 30


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of `path`, lazily; raises DamagedArtifact or SourceUnreadable."""
    try:
        header = read_header(path)
    except HeaderError as fault:
        raise DamagedArtifact(f"{path.name} {fault}; copy or save the adapter again") from None
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault
    return {
        name: LazyTensor(name, info.dtype, info.shape, partial(read_tensor, path, name, info))
        for name, info in header.tensors.items()
    }


def read_tensor(path: Path, name: str, info: TensorInfo) -> torch.Tensor:
    """One tensor of a safetensors file, by `pread`."""
    return viewed(pread(path, name, info.start, info.end), info.dtype, info.shape)


def read_rows(path: Path, name: str, info: TensorInfo, rows: Sequence[int]) -> torch.Tensor:
    """Some rows of a matrix in a safetensors file, in the order asked for; see `pread`."""
    size = (info.end - info.start) // info.shape[0]
    starts = [info.start + row * size for row in rows]
    parts = [pread(path, name, start, start + size) for start in starts]
    return viewed(torch.cat(parts), info.dtype, (len(rows), *info.shape[1:]))


def pread(path: Path, name: str, start: int, end: int) -> torch.Tensor:
    """The bytes of tensor `name`; raises DamagedArtifact or SourceUnreadable."""
    size, done = end - start, 0
    buffer = torch.empty(size, dtype=torch.uint8)
    view = buffer.numpy().data
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while done < size:
                count = os.preadv(file, [view[done:]], start + done)
                if count == 0:
                    break
                done += count
        finally:
            os.close(file)
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault
    if done < size:
        raise DamagedArtifact(f"{path.name} ended inside '{name}': it changed while it was read")
    return buffer


def viewed(raw: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Bytes as a tensor of a safetensors dtype."""
    return raw.view(TORCH_DTYPE[dtype]).reshape(shape)


def from_q8_0(raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """ggml's Q8_0: blocks of an fp16 scale and 32 signed bytes."""
    blocks = raw.reshape(-1, 34)
    scales = blocks[:, :2].contiguous().view(torch.float16).to(torch.float32)
    codes = blocks[:, 2:].contiguous().view(torch.int8).to(torch.float32)
    return (scales * codes).reshape(shape)


def read_pickle(path: Path, *, inside: str | None = None) -> dict[str, LazyTensor]:
    """The tensors of a torch `.bin` (under its key `inside`, if it has that key).

    Raises UnsafePickle, DamagedArtifact or SourceUnreadable.
    """
    state = _load_pickle(path)
    if inside is not None and isinstance(state, dict) and inside in state:
        state = state[inside]
    if not isinstance(state, dict):
        raise DamagedArtifact(f"{path.name} holds a {type(state).__name__}, not tensors by name")
    found: dict[str, LazyTensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise DamagedArtifact(
                f"{path.name} holds a {type(value).__name__} under {name!r}; "
                "an adapter holds tensors under names only"
            )
        if (
            value.layout is not torch.strided
            or value.is_quantized
            or value.device.type != "cpu"
            or value.dtype not in DTYPE_NAME
        ):
            raise DamagedArtifact(
                f"'{name}' in {path.name} is a {value.dtype} tensor ({value.layout}, "
                f"{value.device.type}); an adapter's tensors are dense floats"
            )
        found[name] = LazyTensor(
            name, DTYPE_NAME[value.dtype], tuple(value.shape), partial(_plain, value)
        )
    return found


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().contiguous()


def _load_pickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size == 0:
                raise DamagedArtifact(f"{path.name} is empty; {_SAVE_AGAIN}")
            if size > _MAX_PICKLE_BYTES:
                raise DamagedArtifact(f"{path.name} is {size} bytes: too large for an adapter")
            return _unpickle(file, path.name)
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault


def _unpickle(file: BinaryIO, name: str) -> object:
    """The unpickler runs over bytes anybody may have written: it can raise anything."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                # torch stores its records as they are; a deflated one is there to explode.
                if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                    raise UnsafePickle(f"{name} holds compressed records; torch writes none")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnsafePickle:
        raise
    except Exception as fault:
        if isinstance(fault, pickle.UnpicklingError) and _wanted(str(fault)) is not None:
            raise UnsafePickle(
                f"{name} is a pickle that wants more than tensors ({_wanted(str(fault))}); "
                "it is not loaded: save the adapter as safetensors"
            ) from fault
        raise DamagedArtifact(f"{name} is truncated or damaged; {_SAVE_AGAIN}") from fault


_SAVE_AGAIN = "save the adapter again, best as safetensors"


def _wanted(text: str) -> str | None:
    """What torch says the pickle wants beyond tensors, or None if it is merely damaged."""
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it names {named[1]}"
    return "it holds operations that tensors never need" if "Unsupported" in text else None


def extremes(tensor: torch.Tensor) -> torch.Tensor:
    """The smallest and the largest value; NaN for both if any is NaN. One pass, no copy.

    Rounding to another dtype keeps order, so the extremes tell of all values whether they stay
    finite and whether any stays other than zero.
    """
    return torch.stack(torch.aminmax(tensor))


def within(values: torch.Tensor, bound: float) -> bool:
    """Is every value finite and at most `bound` in size?"""
    return bool((values.abs() <= bound).all())


def count_beyond(tensor: torch.Tensor, bound: float) -> int:
    """How many values are larger in size than `bound`, or not finite."""
    return int((~(tensor.abs() <= bound)).sum())


def all_finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values).all())


def non_finite(tensor: torch.Tensor) -> int:
    """How many values are NaN or infinite."""
    return int((~torch.isfinite(tensor)).sum())


def fold(factor: torch.Tensor, scale: float) -> torch.Tensor:
    """scale·B, in fp32 (fp64 for fp64), stored in B's dtype when that holds the product exactly.

    The engine rounds A and B to its own dtype; folding losslessly makes that the only rounding.
    """
    if scale == 1.0:
        return factor
    wide = factor if factor.dtype is torch.float64 else factor.to(torch.float32)
    product = wide * scale
    narrow = product.to(factor.dtype)
    return narrow if torch.equal(narrow.to(product.dtype), product) else product


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in fp64, in which other tuners' factors are computed."""
    return tensor.to(torch.float64)


def stored(values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """fp64 `values` in `dtype`, the source's, if that holds each exactly; else rounded to fp32.

    fp32 is what PEFT itself computes in; the engine's rounding to its own dtype comes on top.
    """
    if dtype is not None:
        narrow = values.to(dtype)
        if torch.equal(narrow.to(torch.float64), values):
            return narrow.contiguous()
    return values.to(torch.float32).contiguous()


def computed_in(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in the dtype in which a merge computes: fp32, or fp64 for fp64."""
    return tensor if tensor.dtype is torch.float64 else tensor.to(torch.float32)


def row_norms(matrix: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return norms


def with_rows(rows: tuple[int, ...], matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`matrix` with `values` in the places of its `rows`."""
    changed = matrix.clone()
    changed[list(rows)] = values
    return changed


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first, second)


def identity(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


def kronecker(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.kron(first.contiguous(), second.contiguous())


def block_diagonal(blocks: list[torch.Tensor]) -> torch.Tensor:
    # torch's own annotation is missing.
    placed: torch.Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return placed


def stacked(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    return torch.cat(parts, dim=axis)


def singular(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) with B·A the part of `weight` of its `rank` largest singular values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def triangular(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) with B·A of the first `rank` columns of Q and rows of R of `weight`."""
    q, r = torch.linalg.qr(weight)
    return q[:, :rank], r[:rank]


def generator(seed: int) -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(seed)


def uniform(shape: tuple[int, ...], bound: float, source: torch.Generator) -> torch.Tensor:
    """fp32 values drawn from `source` as torch draws them everywhere on a CPU."""
    drawn = torch.empty(shape, dtype=torch.float32)
    return drawn.uniform_(-bound, bound, generator=source)


def rounded(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """`tensor` as an engine that computes in `dtype` (float16, bfloat16, float32) holds it."""
    target = getattr(torch, dtype, None)
    return tensor.to(target) if isinstance(target, torch.dtype) else tensor


def is_zero(tensor: torch.Tensor) -> bool:
    return not bool(tensor.any())


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's bytes as they lie in memory: little-endian, as safetensors wants them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def same_values(tensor: torch.Tensor, dtype: str) -> torch.Tensor | None:
    """`tensor` in the safetensors dtype `dtype`, or None when that would change a value."""
    target = tensor.to(TORCH_DTYPE[dtype])
    return target if torch.equal(target.to(tensor.dtype), tensor) else None


def same_numbers(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal values, whatever the dtypes; a shape of another kind or a NaN is never equal."""
    if first.dtype is not second.dtype:
        wider = torch.promote_types(first.dtype, second.dtype)
        first, second = first.to(wider), second.to(wider)
    return torch.equal(first, second)


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """|new - old| / |old| in the Frobenius norm; infinite from zero."""
    before = old.to(torch.float64)
    size = float(torch.linalg.vector_norm(before))
    change = float(torch.linalg.vector_norm(new.to(torch.float64) - before))
    return change / size if size else float("inf")


def from_bytes(raw: bytes) -> torch.Tensor:
    """A copy of `raw` to be looked at with `viewed`."""
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def dtype_of(tensor: torch.Tensor) -> str:
    return DTYPE_NAME[tensor.dtype]


def item_size(dtype: str) -> int:
    return ITEM_SIZE[dtype]


def outside(indices: torch.Tensor, bound: int) -> int | None:
    """The first of `indices` that is below 0 or not below `bound`."""
    wrong = indices[(indices < 0) | (indices >= bound)]
    return int(wrong[0]) if wrong.numel() else None


def without_largest(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """`weight` without the part of its `rank` largest singular values; taken apart in fp32."""
    left, values, right = torch.linalg.svd(weight.to(torch.float32), full_matrices=False)
    left, values, right = (part.to(weight.dtype) for part in (left, values, right))
    rest: torch.Tensor = (left[:, rank:] * values[rank:]) @ right[rank:]
    return rest


def solved(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """X with matrix·X = right, in fp64; the nearest one where the matrix is singular."""
    matrix, right = matrix.to(torch.float64), right.to(torch.float64)
    try:
        found: torch.Tensor = torch.linalg.solve(matrix, right)
    except RuntimeError:
        found = torch.linalg.pinv(matrix, rtol=1e-6) @ right
    return found


def unit_columns(matrix: torch.Tensor) -> torch.Tensor:
    """Each column divided by its length, in fp32; those of (almost) none are zero."""
    lengths = torch.linalg.vector_norm(matrix, dim=0)
    return torch.where(lengths > 1e-12, matrix / lengths, 0.0).to(torch.float32)


def squares(values: torch.Tensor) -> float:
    """The sum of the squares, in one pass."""
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))
