"""What compositions compute with: thinned-out sums of changes, and the nearest low-rank product."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def nearest_of_product(
    b: torch.Tensor, a: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """(B, A, singular values) of the product b·a, b [out, r], a [r, in], largest value first.

    Its first k columns and rows are the nearest product of rank k. Two QR of the thin factors and
    one SVD of [r, r] give it without the whole change ever being made.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = values.sqrt()
    return (q_b @ left) * root, root[:, None] * (right @ q_a.T), values.tolist()


def split(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """The same of a whole change [out, in]."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    root = values.sqrt()
    return left * root, root[:, None] * right, values.tolist()


def size(b: torch.Tensor, a: torch.Tensor) -> float:
    """An upper bound of ‖b·a‖ (Frobenius)."""
    return float(b.norm() * a.norm())


def ties(changes: Sequence[torch.Tensor], weights: Sequence[float], density: float) -> torch.Tensor:
    """TIES-Merging (arXiv 2306.01708), in the order in which PEFT does it.

    Each change keeps its largest `density` of values; each place takes the sign of the sum there;
    the mean of the weighted values of that sign is the result.
    """
    kept = torch.stack([_largest(change, density) for change in changes])
    sign = torch.where(kept.sum(dim=0) >= 0, 1.0, -1.0).to(kept.dtype)
    agreeing = kept.sign() == sign
    scale = torch.tensor(weights, dtype=kept.dtype)[:, None, None]
    return (kept * scale * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def dare(
    changes: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float,
    source: torch.Generator,
) -> torch.Tensor:
    """DARE (arXiv 2311.03099): each value stays with probability `density` and is divided by it,
    so that the expected change is the sum."""
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        stays = torch.rand(change.shape, generator=source, dtype=torch.float64) < density
        total += weight * (change * stays) / density
    return total


def _largest(change: torch.Tensor, density: float) -> torch.Tensor:
    """The `density` of values that are largest in size; zero elsewhere."""
    count = int(density * change.numel())
    flat = change.reshape(-1)
    places = torch.topk(flat.abs(), k=count).indices
    return torch.zeros_like(flat).index_copy(0, places, flat[places]).reshape(change.shape)
