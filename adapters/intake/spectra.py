"""Weights made of few numbers: circulant blocks, frequencies, wavelets."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def circulant(kernel: torch.Tensor) -> torch.Tensor:
    """[m, n, b] -> [m·b, n·b] of blocks C(w)[k, l] = w[(l − k) mod b]."""
    rows, columns, size = kernel.shape
    places = torch.arange(size)
    blocks = kernel[:, :, (places[None, :] - places[:, None]) % size]
    return blocks.transpose(1, 2).reshape(rows * size, columns * size)


def drawn_places(rows: int, columns: int, count: int, seed: int) -> torch.Tensor:
    """`count` different places of a matrix, as flat indices, as PEFT draws them from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    # A copy: the slice alone would keep all of it.
    return torch.randperm(rows * columns, generator=generator)[:count].clone()


def placed(values: torch.Tensor, places: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Zeros but for `values` at flat `places`; values at one place add up."""
    flat = torch.zeros(shape[0] * shape[1], dtype=values.dtype)
    return flat.scatter_add(0, places.to(torch.int64), values).reshape(shape)


def from_frequencies(spectrum: torch.Tensor) -> torch.Tensor:
    """The real part of the inverse two-dimensional Fourier transform."""
    values: torch.Tensor = torch.fft.ifft2(spectrum).real
    return values


def from_wavelets(
    coefficients: torch.Tensor, low: Sequence[float], high: Sequence[float]
) -> torch.Tensor:
    """One level of the inverse two-dimensional wavelet transform, cut as PEFT cuts it.

    `coefficients` are four quarters: averages, details along the rows' axis at the right, along
    the columns' below, of both (peft/tuners/waveft/waverec2d.py). With filters of length l each
    side comes out shorter by l − 2.
    """
    half = coefficients.shape[0] // 2
    top, bottom = coefficients[:half], coefficients[half:]
    middle = coefficients.shape[1] // 2
    # At the right of the upper half lies what is high along the rows' axis.
    left = _spread(top[:, :middle], low) + _spread(top[:, middle:], high)
    right = _spread(bottom[:, :middle], low) + _spread(bottom[:, middle:], high)
    both: torch.Tensor = _spread(left.T, low) + _spread(right.T, high)
    return both.T


def _spread(values: torch.Tensor, taps: Sequence[float]) -> torch.Tensor:
    """Along the first axis: every value times the filter, two places on from the one before."""
    kernel = torch.tensor(taps, dtype=values.dtype).reshape(1, 1, -1)
    spread = torch.nn.functional.conv_transpose1d(values.T[:, None], kernel, stride=2)[:, 0].T
    cut = len(taps) - 2
    return spread[cut : spread.shape[0] - cut]
