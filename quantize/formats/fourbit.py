"""bitsandbytes' four bits: NF4 and FP4, by blocks, with scales that may be quantized themselves.

A weight [out, in] is read row after row as one sequence and cut into blocks of `blocksize`. Of
each the largest magnitude (absmax) is kept, and of each value the index of the nearest of 16 code
values to value/absmax, two to a byte, the first in the upper four bits. With double quantization
the absmax, less their mean, are kept as indices into 256 code values, by blocks of 256 with an
absmax each (Dettmers et al. 2023, arXiv 2305.14314; bitsandbytes/functional.py, quantize_4bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

FourBitKind = Literal["nf4", "fp4"]
BLOCK = 64
NESTED_BLOCK = 256
# QLoRA's appendix E: quantiles of the normal distribution, with an exact zero.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
# A sign, two bits of exponent, one of mantissa; in twelfths. The upper eight are the negatives.
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
_TINY = 1e-38


def code_values(kind: FourBitKind) -> torch.Tensor:
    """The 16 values in the order of their indices, fp32."""
    if kind == "nf4":
        return torch.tensor(_NF4)
    half = torch.tensor(_FP4) / 12
    return torch.cat([half, -half])


def dynamic_map() -> torch.Tensor:
    """The 256 values of the absmax' code, ascending, fp32: seven exponents, fewer digits each
    (Dettmers 2015, arXiv 1511.04561)."""
    found = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / 2)
        found += [middles, -middles]
    return torch.cat(found).sort().values


def nearest(values: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The index of the code value nearest to each of `values`; in the middle of two, the lower."""
    ascending, order = torch.sort(codes, stable=True)
    middles = (ascending[:-1] + ascending[1:]) / 2
    return order[torch.bucketize(values, middles)]


def largest(values: torch.Tensor, block: int) -> torch.Tensor:
    """The largest magnitude of each block of a sequence; the last block may be shorter."""
    return _blocks(values, block).abs().amax(dim=1)


def _blocks(values: torch.Tensor, block: int) -> torch.Tensor:
    missing = -values.numel() % block
    if missing:
        values = torch.nn.functional.pad(values, (0, missing))
    return values.reshape(-1, block)


def rounded_scales(absmax: torch.Tensor) -> torch.Tensor:
    """What double quantization makes of all the absmax of one weight."""
    offset = absmax.mean()
    codes = dynamic_map()
    centred = absmax - offset
    outer = largest(centred, NESTED_BLOCK)
    scaled = _blocks(centred, NESTED_BLOCK) * (1 / outer.clamp(min=_TINY))[:, None]
    kept = codes[nearest(scaled.clamp(-1, 1), codes)] * outer[:, None]
    return kept.reshape(-1)[: absmax.numel()] + offset


def round_trip(
    values: torch.Tensor, absmax: torch.Tensor, scales: torch.Tensor, kind: FourBitKind
) -> torch.Tensor:
    """A sequence of whole blocks quantized with `absmax` and read back with `scales`, fp32."""
    codes = code_values(kind)
    scaled = _blocks(values, BLOCK) * (1 / absmax.clamp(min=_TINY))[:, None]
    kept = codes[nearest(scaled.clamp(-1, 1), codes)] * scales[:, None]
    return kept.reshape(-1)[: values.numel()]


@dataclass(frozen=True, slots=True)
class NestedScales:
    """The second quantization: code values, an absmax for each `block` of scales, the mean."""

    codes: torch.Tensor
    absmax: torch.Tensor
    block: int
    offset: float


def stored_scales(kept: torch.Tensor, nested: NestedScales | None) -> torch.Tensor:
    """The absmax of a checkpoint, fp32."""
    if nested is None:
        return kept.to(torch.float32)
    outer = nested.absmax.repeat_interleave(nested.block)[: kept.numel()]
    return nested.codes[kept.to(torch.int64)] * outer + torch.tensor(nested.offset)


def from_bytes(
    packed: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, block: int
) -> torch.Tensor:
    """The values of packed bytes that begin with a block, fp32; `scales` are those blocks'."""
    pairs = torch.stack([packed >> 4, packed & 0xF], dim=1)
    values = codes[pairs.reshape(-1).to(torch.int64)]
    return (_blocks(values, block) * scales[:, None]).reshape(-1)[: values.numel()]
