"""Orthogonal matrices as OFT and BOFT keep them, and their use on a weight, block by block."""

from __future__ import annotations

import torch


def skew(upper: torch.Tensor, size: int) -> torch.Tensor:
    """[n, size·(size−1)/2] of what is above the diagonal -> [n, size, size] with Qᵀ = −Q."""
    rows, columns = torch.triu_indices(size, size, 1)
    full = torch.zeros(upper.shape[0], size, size, dtype=upper.dtype)
    full[:, rows, columns] = upper
    return full - full.transpose(1, 2)


def cayley(q: torch.Tensor) -> torch.Tensor:
    """(I − Q)(I + Q)⁻¹ of each skew-symmetric [n, size, size]: orthogonal."""
    one = torch.eye(q.shape[-1], dtype=q.dtype)
    rotation: torch.Tensor = torch.linalg.solve(one + q, one - q, left=False)
    return rotation


def neumann(q: torch.Tensor, terms: int) -> torch.Tensor:
    """The Cayley transform's Neumann series as PEFT sums it: I + 2Q + … + 2Qᵏ + Qᵏ⁺¹.

    k is terms − 2, but 2 for three terms; two terms are I + 2Q alone, one is I
    (peft/tuners/oft/layer.py, _cayley_batch; so since PEFT 0.18).
    """
    total = torch.eye(q.shape[-1], dtype=q.dtype).repeat(q.shape[0], 1, 1)
    if terms < 2:
        return total
    total = total + 2 * q
    if terms == 2:
        return total
    power = q
    for _ in range(max(2, terms - 2) - 1):
        power = power @ q
        total = total + 2 * power
    return total + power @ q


def turned_inputs(weight: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """W·Rᵀ for the block-diagonal R of `blocks` [n or 1, size, size]; W is [out, in]."""
    size = blocks.shape[-1]
    cut = weight.reshape(weight.shape[0], -1, size)
    turned = torch.matmul(cut.transpose(0, 1), blocks.transpose(1, 2))
    return turned.transpose(0, 1).reshape(weight.shape)


def within_norm(upper: torch.Tensor, bound: float) -> torch.Tensor:
    """Each row scaled down so that its skew-symmetric matrix has a Frobenius norm up to `bound`."""
    # What is above the diagonal is below it once more.
    norms = torch.linalg.vector_norm(upper, dim=1, keepdim=True) * 2**0.5
    return torch.where(norms <= bound, upper, upper * (bound / norms))


def butterfly(inputs: int, blocks: int, size: int, level: int) -> torch.Tensor:
    """The order of inputs at a level: in every 2^level blocks first the even half-blocks, then
    the odd ones (peft/tuners/boft/layer.py, block_butterfly_perm)."""
    half = size // 2
    order = torch.arange(inputs).reshape(blocks >> level, -1, half)
    return torch.cat((order[:, ::2], order[:, 1::2]), dim=1).reshape(-1)


def permuted_inputs(
    weight: torch.Tensor, blocks: torch.Tensor, order: torch.Tensor | None
) -> torch.Tensor:
    """W·(P·R·Pᵀ)ᵀ, where P takes input `order[i]` to place i; None: P is the identity."""
    if order is None:
        return turned_inputs(weight, blocks)
    return turned_inputs(weight[:, torch.argsort(order)], blocks)[:, order]
