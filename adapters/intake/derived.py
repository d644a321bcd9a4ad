"""Tensors made of other tensors when they are loaded: turned, cut, reordered.

Shapes are known without reading. A tensor that is no matrix keeps its shape, so that the check of
shapes, which comes later, speaks of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adapters.intake import tensors
from adapters.intake.raw import LazyTensor

if TYPE_CHECKING:
    import torch


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The matrix turned: [a, b] becomes [b, a]."""
    if len(tensor.shape) != 2:
        return tensor

    def load() -> torch.Tensor:
        return tensor.load().T.contiguous()

    return replace(tensor, shape=tensor.shape[::-1], load=load)


def rows(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows `start` to `stop` (not included) of a matrix that has them."""
    assert 0 <= start <= stop <= tensor.shape[0], "the reader checks the rows first"

    def load() -> torch.Tensor:
        return tensor.load()[start:stop].contiguous()

    return replace(tensor, shape=(stop - start, *tensor.shape[1:]), load=load)


def grouped_rows(tensor: LazyTensor, groups: int, heads: int, span: tuple[int, int]) -> LazyTensor:
    """Of each of `groups` groups of `heads` blocks of rows the blocks `span` (end excluded)."""
    assert tensor.shape[0] % (groups * heads) == 0, "the reader checks the rows first"
    size, count = tensor.shape[0] // (groups * heads), span[1] - span[0]

    def load() -> torch.Tensor:
        values = tensor.load()
        blocks = values.reshape(groups, heads, size, *values.shape[1:])[:, span[0] : span[1]]
        return blocks.reshape(groups * count * size, *values.shape[1:]).contiguous()

    return replace(tensor, shape=(groups * count * size, *tensor.shape[1:]), load=load)


def on_the_diagonal(tensor: LazyTensor, parts: int) -> LazyTensor:
    """`parts` blocks of rows, [n·a, b], each in columns of its own: [n·a, n·b]."""
    assert tensor.shape[0] % parts == 0, "the reader checks the rows first"

    def load() -> torch.Tensor:
        return tensors.block_diagonal(list(tensor.load().chunk(parts)))

    return replace(tensor, shape=(tensor.shape[0], parts * tensor.shape[1]), load=load)


def half_split(tensor: LazyTensor, heads: int) -> LazyTensor:
    """Rows of a query or key projection, from interleaved rotary order to Hugging Face's.

    Meta's layout (llama.cpp's for Llama, torchtune's) turns the neighbours 2i and 2i+1 of a head
    together; Hugging Face's turns i and i + head_dim/2. The rows number heads · head_dim.
    """
    assert tensor.shape[0] % (2 * heads) == 0, "the reader checks the rows first"
    half = tensor.shape[0] // heads // 2

    def load() -> torch.Tensor:
        values = tensor.load()
        apart = values.reshape(heads, half, 2, *values.shape[1:])
        return apart.transpose(1, 2).reshape(values.shape).contiguous()

    return replace(tensor, load=load)
