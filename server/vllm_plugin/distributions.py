"""Next-token distributions over the whole vocabulary: kept on disk, and compared row by row.

A row is one position of one text. The reference's log-probabilities are kept as float16, 2 bytes
for each token of the vocabulary. Read back, a row is normalised again: float16 is wrong by up to
2⁻¹² of ln p, which would go into a KL divergence as it is (about 1e-4 nats, either sign); between
two *distributions* the divergence is quadratic in their difference, so at most 1e-6 is left.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

BYTES_PER_PROBABILITY = 2


@dataclass(frozen=True, slots=True)
class Compared:
    """Of each row: KL(reference ‖ candidate) in nats, the most probable token of the candidate."""

    kl: torch.Tensor
    agrees: torch.Tensor


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """ln softmax of each row of `logits` [rows, vocabulary], in fp64.

    Log-probabilities may be given as well: they are normalised again. A row with NaN or +inf, or
    with nothing but −inf, becomes NaN.
    """
    return torch.log_softmax(logits.to(torch.float64), dim=-1)


def kl_divergence(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p·(ln p − ln q) of each row in nats; both are normalised ln [rows, vocabulary].

    A token that p excludes (−inf) adds nothing; one that only q excludes makes it infinite.
    """
    p = reference.exp()
    terms = torch.where(p > 0, p * (reference - candidate), 0.0)
    # Both add up to 1 within fp64's rounding, so a negative sum is rounding too.
    return torch.where(reference.isnan().any(-1), torch.nan, terms.sum(-1).clamp_min(0.0))


class DistributionFile:
    """Rows [rows, vocabulary] of log-probabilities, as float16, in a file."""

    def __init__(self, path: Path, vocabulary: int, *, rows: int | None = None) -> None:
        """Open the file; with `rows` make it, its whole size reserved. Raises OSError."""
        self.vocabulary = vocabulary
        self._row_bytes = vocabulary * BYTES_PER_PROBABILITY
        flags = os.O_RDONLY if rows is None else os.O_RDWR | os.O_CREAT | os.O_TRUNC
        self._handle = os.open(path, flags, 0o644)
        if rows:
            try:
                os.posix_fallocate(self._handle, 0, rows * self._row_bytes)
            except OSError:
                self.close()
                path.unlink()
                raise

    def write(self, first: int, rows: torch.Tensor) -> None:
        """Write `rows` [n, vocabulary] of ln p from row `first` on."""
        content = rows.to(torch.float16).cpu().contiguous().numpy().data.cast("B")
        at = first * self._row_bytes
        while content:
            count = os.pwrite(self._handle, content, at)
            content, at = content[count:], at + count

    def read(self, first: int, count: int) -> torch.Tensor:
        """Read `count` rows from row `first` on, as they were rounded: [count, vocabulary]."""
        rows = np.empty((count, self.vocabulary), dtype=np.float16)
        content = rows.data.cast("B")
        at = first * self._row_bytes
        while content:
            got = os.preadv(self._handle, [content], at)
            if not got:
                raise EOFError("the reference's distributions are cut short")
            content, at = content[got:], at + got
        return torch.from_numpy(rows)

    def close(self) -> None:
        os.close(self._handle)
