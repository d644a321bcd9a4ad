"""The base's weights as a QLoRA saw them in training: rounded to four bits, and back.

bitsandbytes keeps a weight in four bits and computes with what it reads from them, in the dtype of
the computation (Linear4bit.forward, bitsandbytes/autograd/_functions.py): that is the W to which
the adapter was trained to be added.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from quantize.formats.bitsandbytes import FourBitWeight
from quantize.formats.fourbit import (
    BLOCK,
    FourBitKind,
    from_bytes,
    largest,
    round_trip,
    rounded_scales,
)
from quantize.merging.layout import Made, Place, Rows
from quantize.merging.reading import grid, read_rows

# Values of one step; 512 KB of fp32.
_STEP = 1 << 17


@dataclass(frozen=True, slots=True)
class Rounding:
    """How training rounded: kind of four bits, double quantization, the computation's dtype."""

    kind: FourBitKind
    double: bool
    dtype: torch.dtype


def rounded(place: Place, name: str, rounding: Rounding, *, turned: bool) -> Made:
    """The parameter at `place`, quantized as bitsandbytes does it and read back.

    Block by block, after a first pass for the scales, which are a 64th of the values. `turned`: the
    model keeps it as [in, out], and transformers turns it before it is quantized; this is done in
    memory as a whole.
    """
    opener = _open_turned if turned else _open_rounded
    return Made(partial(opener, place, name, rounding), by_rows=not turned)


def unpacked(weight: FourBitWeight, dtype: torch.dtype, *, turned: bool) -> Made:
    """A four-bit weight of a checkpoint. Its bytes are in memory while its rows are read, and with
    `turned` all its values."""
    return Made(partial(_open_unpacked, weight, dtype, turned), by_rows=not turned)


def _open_rounded(place: Place, name: str, rounding: Rounding) -> Rows:
    shape = grid(place.info.shape)
    width = shape[1]
    wide = torch.float64 if place.info.dtype == "F64" else torch.float32

    def values(start: int, end: int) -> torch.Tensor:
        first, last = start // width, -(-end // width)
        sequence = read_rows(place, name, first, last).reshape(-1).to(torch.float32)
        return sequence[start - first * width : end - first * width]

    count = math.prod(shape)
    absmax = torch.cat(
        [largest(values(at, min(at + _STEP, count)), BLOCK) for at in range(0, count, _STEP)]
    )
    scales = rounded_scales(absmax) if rounding.double else absmax

    def blocks(start: int, end: int) -> torch.Tensor:
        at = slice(start // BLOCK, -(-end // BLOCK))
        found = round_trip(values(start, end), absmax[at], scales[at], rounding.kind)
        return found.to(rounding.dtype).to(wide)

    return partial(_rows, blocks, shape, BLOCK)


def _open_turned(place: Place, name: str, rounding: Rounding) -> Rows:
    rows = read_rows(place, name, 0, place.info.shape[0])
    sequence = rows.T.reshape(-1).to(torch.float32)
    absmax = largest(sequence, BLOCK)
    scales = rounded_scales(absmax) if rounding.double else absmax
    found = round_trip(sequence, absmax, scales, rounding.kind).to(rounding.dtype)
    return partial(_cut, found.reshape(rows.T.shape).T.to(rows.dtype))


def _open_unpacked(weight: FourBitWeight, dtype: torch.dtype, turned: bool) -> Rows:
    if turned:
        return partial(_cut, weight.values().to(dtype).to(torch.float32).T)
    packed = weight.packed.load().reshape(-1).view(torch.uint8)
    codes, scales = weight.codes.load(), weight.scales()

    def blocks(start: int, end: int) -> torch.Tensor:
        at = slice(start // weight.block, -(-end // weight.block))
        found = from_bytes(packed[start // 2 : -(-end // 2)], codes, scales[at], weight.block)
        return found[: end - start].to(dtype).to(torch.float32)

    return partial(_rows, blocks, grid(weight.shape), weight.block)


def _rows(
    blocks: Callable[[int, int], torch.Tensor],
    shape: tuple[int, int],
    block: int,
    start: int,
    end: int,
) -> torch.Tensor:
    """Rows [start, end), as far as there are any, out of whole blocks."""
    count, width = shape
    start, end = min(start, count), min(end, count)
    low = start * width // block * block
    high = min(-(-end * width // block) * block, count * width)
    found = blocks(low, high)[start * width - low : end * width - low]
    return found.reshape(end - start, width)


def _cut(whole: torch.Tensor, start: int, end: int) -> torch.Tensor:
    return whole[start:end]
