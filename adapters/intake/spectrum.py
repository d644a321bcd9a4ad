"""The change of one weight matrix taken apart: singular values, the noise floor, the rank above it.

A fine-tune saved in half precision differs from its base by the trained change and by rounding,
so its measured change always has full rank. How far the rounding reaches is computed:

* Rounding to a grid of step u is, to second order, independent noise of variance u²/12 (Bennett
  1948; Widrow's theorem). A float's step is 2^(floor(log2|w|) - p), p its stored mantissa bits. The
  fine-tune's own rounding and the base's are added, for nobody says which base was trained from.
* The largest singular value of an m × n matrix of independent noise of variance v is
  √v·(√m + √n) (the Marchenko-Pastur edge; Bai and Yin 1988), or with unequal variances, to leading
  order, the root of the largest sum of variances in a row plus that in a column (Bandeira and van
  Handel, Annals of Probability 44, 2016, theorem 3.1).
* It fluctuates by the Tracy-Widom law (Johnstone, Annals of Statistics 29, 2001): with its scale
  s = (√m + √n)(1/√m + 1/√n)^(1/3) the square stays below (√m + √n)² + 3.27·s in 999 of 1000.
* What is left once the singular values above that edge are taken away can be less than this noise
  (the base was the very one that was trained, changes below half a step vanish): then the edge
  comes down with it, until nothing more rises above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Bits of the mantissa that are stored, and the exponent of the smallest normal value.
_GRID = {
    torch.bfloat16: (7, -126),
    torch.float16: (10, -14),
    torch.float32: (23, -126),
    torch.float64: (52, -1022),
}
# The 99.9 % quantile of the Tracy-Widom law of order 1.
_QUANTILE = 3.27
# Singular values below this part of the largest are nothing: a Gram matrix in fp64 tells them from
# zero down to 1e-7, and factors in fp32 are themselves rounded to as much.
_NUMERICAL = 1e-6
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Change:
    """W_tuned - W_base of a matrix, in fp64 a block of rows at a time; the longer side first."""

    tuned: torch.Tensor
    base: torch.Tensor

    @classmethod
    def of(cls, tuned: torch.Tensor, base: torch.Tensor) -> tuple[Change, bool]:
        """And whether the matrices had to be turned for their longer side to be the rows."""
        turned = tuned.shape[0] < tuned.shape[1]
        return (cls(tuned.T, base.T) if turned else cls(tuned, base)), turned

    @property
    def shape(self) -> tuple[int, int]:
        return self.tuned.shape[0], self.tuned.shape[1]

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(change, tuned, base) of some rows each, in fp64."""
        rows, columns = self.shape
        step = max(1, _BLOCK // columns)
        for at in range(0, rows, step):
            tuned = self.tuned[at : at + step].to(torch.float64)
            base = self.base[at : at + step].to(torch.float64)
            yield tuned - base, tuned, base


@dataclass(frozen=True)
class Spectrum:
    """All singular values of a change [m, n], m >= n, and what they say.

    `values` [n], the largest first; `vectors` [n, n], those of the shorter side, a column each.
    `energy` is the sum of their squares and `noise` the part of it that rounding explains. `rank`
    of them stand above the noise, `numerical_rank` are other than zero as far as fp64 tells.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    energy: float
    noise: float
    rank: int
    numerical_rank: int


def spectrum(change: Change) -> Spectrum:
    """By the eigenvalues of the Gram matrix of the shorter side, exact to 1e-7 of the largest."""
    rows, columns = change.shape
    grids = [_grid(change.tuned), _grid(change.base)]
    gram = torch.zeros(columns, columns, dtype=torch.float64)
    in_columns = torch.zeros(columns, dtype=torch.float64)
    in_rows, noise = 0.0, 0.0
    for block, *sides in change.blocks():
        gram += block.T @ block
        variance = sum(_variance(side, grid) for side, grid in zip(sides, grids, strict=True))
        assert isinstance(variance, torch.Tensor)
        in_columns += variance.sum(0)
        in_rows = max(in_rows, float(variance.sum(1).max()))
        noise += float(variance.sum())
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp(min=0).sqrt().flip(0)
    energy = float(gram.trace())
    edge = math.sqrt(in_rows) + math.sqrt(float(in_columns.max()))
    rank, left = _above(values, edge * _margin(rows, columns), noise, rows)
    numerical = int((values > _NUMERICAL * float(values[0])).sum()) if energy > 0 else 0
    return Spectrum(
        values=values,
        vectors=vectors.flip(1),
        energy=energy,
        noise=min(noise * left, energy),
        rank=min(rank, numerical),
        numerical_rank=numerical,
    )


def _above(values: torch.Tensor, edge: float, noise: float, rows: int) -> tuple[int, float]:
    """How many `values` stand above the noise, and how much of the expected noise is there."""
    columns = len(values)
    rank, there = int((values > edge).sum()), 1.0
    while rank < columns and noise > 0:
        left = float((values[rank:] ** 2).sum()) / ((rows - rank) * (columns - rank))
        there = min(1.0, left * rows * columns / noise)
        risen = int((values > edge * math.sqrt(there)).sum())
        if risen <= rank:
            break
        rank = risen
    return rank, there


@dataclass(frozen=True)
class Factors:
    """B [out, r] and A [r, in] in fp32, and how far B·A is from the change.

    `lost` is the sum of squares of the difference.
    """

    a: torch.Tensor
    b: torch.Tensor
    lost: float


def factors(change: Change, found: Spectrum, rank: int, *, turned: bool) -> Factors:
    """The best approximation of `rank` (Eckart and Young 1936), the singular values shared evenly
    between B and A as √s. `lost` is measured on the factors as they are stored."""
    right = found.vectors[:, :rank]
    root = found.values[:rank].sqrt()
    short = (root[:, None] * right.T).to(torch.float32)
    long = torch.cat([block @ right for block, _, _ in change.blocks()]) / root
    long = long.to(torch.float32)
    lost, at, wide = 0.0, 0, short.to(torch.float64)
    for block, _, _ in change.blocks():
        rows = long[at : at + len(block)].to(torch.float64)
        lost += float(((block - rows @ wide) ** 2).sum())
        at += len(block)
    if turned:
        return Factors(a=long.T.contiguous(), b=short.T.contiguous(), lost=lost)
    return Factors(a=short.contiguous(), b=long.contiguous(), lost=lost)


def _margin(rows: int, columns: int) -> float:
    together = math.sqrt(rows) + math.sqrt(columns)
    scale = together * (1 / math.sqrt(rows) + 1 / math.sqrt(columns)) ** (1 / 3)
    return math.sqrt(1 + _QUANTILE * scale / together**2)


def _grid(values: torch.Tensor) -> tuple[int, int]:
    """That of the narrowest dtype that holds every value: bf16 weights are often saved wide."""
    for narrow in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(values.to(narrow).to(values.dtype), values):
            return _GRID[narrow]
    return _GRID[values.dtype]


def _variance(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """u²/12, u being the rounding step at each value."""
    bits, smallest = grid
    exponent = (torch.frexp(values).exponent - 1).clamp(min=smallest).to(torch.float64)
    return torch.exp2(2 * (exponent - bits)) / 12
