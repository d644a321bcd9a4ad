"""Integers of a few bits, packed into int32 words with the first in the lowest bits."""

from __future__ import annotations

import torch

WORD_BITS = 32


def unpacked(words: torch.Tensor, bits: int, axis: int) -> torch.Tensor:
    """The unsigned codes of int32 `words` [a, b], as int32 and unpacked along `axis` (0 or 1).

    A word holds 32 // bits codes; what is left of it is unused.
    """
    # An arithmetic shift fills with the sign, which the mask then takes away.
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32) * bits
    mask = (1 << bits) - 1
    if axis == 0:
        codes = (words.unsqueeze(1) >> shifts[None, :, None]) & mask
        return codes.reshape(-1, words.shape[1])
    codes = (words.unsqueeze(2) >> shifts) & mask
    return codes.reshape(words.shape[0], -1)
