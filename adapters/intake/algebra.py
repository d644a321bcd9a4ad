"""What is computed of tensors once they are read: decompositions, products, drawn numbers.

Beside `tensors` the only module here that calls torch's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from adapters.intake.tensors import generator, wide

# Elementwise functions by transformers' names (transformers/activations.py, ACT2CLS).
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "hardswish": functional.hardswish,
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
# Rows of a base's weight that are widened at once.
_ROWS = 1024


def smallest(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) with B·A the part of `weight` of its `rank` smallest singular values."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = values.shape[0] - rank
    return left[:, kept:] * values[kept:], right[kept:]


def orthonormal(matrix: torch.Tensor) -> torch.Tensor:
    """Q of the QR of `matrix`, with the signs of Householder's reflections."""
    q: torch.Tensor = torch.linalg.qr(matrix)[0]
    return q


def right_product(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """weight · factor in fp64, some rows at a time: a whole weight is not copied to fp64."""
    return torch.cat(
        [wide(weight[at : at + _ROWS]) @ factor for at in range(0, weight.shape[0], _ROWS)]
    )


def left_product(factor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """factor · weight in fp64, some rows of the weight at a time."""
    total = torch.zeros(factor.shape[0], weight.shape[1], dtype=torch.float64)
    for at in range(0, weight.shape[0], _ROWS):
        total += factor[:, at : at + _ROWS] @ wide(weight[at : at + _ROWS])
    return total


def picks(places: Sequence[int], size: int) -> torch.Tensor:
    """[places, size]: 1 in each row's place, else 0; in bf16, which holds both exactly."""
    found = torch.zeros(len(places), size, dtype=torch.bfloat16)
    found[torch.arange(len(places)), torch.tensor(places)] = 1
    return found


def normal(shape: tuple[int, ...], deviation: float, seed: int) -> torch.Tensor:
    """fp32 values around 0 as torch draws them everywhere on a CPU."""
    return torch.normal(0.0, deviation, size=shape, generator=generator(seed))


def balanced(count: int, size: int, seed: int) -> torch.Tensor:
    """`count` numbers below `size`, each as often as any other or once more, in numpy's order."""
    source = np.random.default_rng(seed)
    found = np.repeat(np.arange(size), count // size)
    if count % size:
        # Which come once more is drawn first.
        found = np.concatenate([found, source.choice(size, size=count % size, replace=False)])
    source.shuffle(found)
    return torch.from_numpy(found)
