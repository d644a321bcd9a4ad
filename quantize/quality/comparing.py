"""From figures per position to figures of a set: perplexity, KL divergence, top-1 agreement.

The figures per position come from the probe (server/vllm_plugin/distributions.py), which alone
sees the whole distributions. A position is one next token: a text of n tokens has n - 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from adapters.frozen import Frozen

# Nats, a quarter of a decade each; below and above them are two bins more. Fixed, so that the
# histograms of any two reports can be laid on each other.
HISTOGRAM_EDGES: tuple[float, ...] = tuple(10.0 ** (step / 4) for step in range(-32, 9))


class Divergence(Frozen):
    """How far a candidate's next-token distributions are from a reference's, over a set of texts.

    KL(reference ‖ candidate) = Σ p·(ln p − ln q) over the whole vocabulary, in nats, of each
    position. `kl_histogram` counts positions: under HISTOGRAM_EDGES[0], between each two edges,
    from the last edge on. `top1_agreement` is the share of positions where both find the same
    token the most probable. None: a position's figure is not finite.
    """

    kl_mean: float | None
    kl_p99: float | None
    kl_max: float | None
    kl_histogram: tuple[int, ...]
    top1_agreement: float
    reference_perplexity: float | None


class SetMeasurement(Frozen):
    """What was measured on one set of texts.

    `tokens` counts the positions that were predicted. `non_finite` counts those at which the
    model gave no usable distribution (NaN, infinite, or no probability at all for the token that
    came): a sound model has none, and the perplexity is None if there is any.
    """

    texts: int
    tokens: int
    non_finite: int
    perplexity: float | None
    against: Divergence | None = None


def perplexity(logprobs: NDArray[np.float64]) -> float | None:
    """exp(−mean ln p) of the tokens that came; `logprobs` [positions] in nats; None: not finite."""
    if not logprobs.size or not np.isfinite(logprobs).all():
        return None
    mean = -float(np.mean(logprobs))
    # exp overflows from here on; a model that is so wrong has no figure worth a name.
    return math.exp(mean) if mean < 700 else None


def divergence(
    kl: NDArray[np.float64],
    agrees: NDArray[np.bool_],
    reference_logprobs: NDArray[np.float64],
) -> Divergence:
    """Sum up figures [positions]: nats, whether top-1 is the same, the reference's ln p."""
    finite = kl[np.isfinite(kl)]
    whole = bool(kl.size) and finite.size == kl.size
    # An infinite one belongs to the last bin; NaN is no figure at all.
    counted = kl[~np.isnan(kl)]
    bins = np.searchsorted(np.asarray(HISTOGRAM_EDGES), counted, side="right")
    return Divergence(
        kl_mean=float(np.mean(finite)) if whole else None,
        kl_p99=float(np.quantile(finite, 0.99)) if whole else None,
        kl_max=float(np.max(finite)) if whole else None,
        kl_histogram=tuple(np.bincount(bins, minlength=len(HISTOGRAM_EDGES) + 1).tolist()),
        top1_agreement=float(np.mean(agrees)) if agrees.size else 0.0,
        reference_perplexity=perplexity(reference_logprobs),
    )


def set_measurement(
    texts: int,
    logprobs: NDArray[np.float64],
    kl: NDArray[np.float64] | None = None,
    agrees: NDArray[np.bool_] | None = None,
    reference_logprobs: NDArray[np.float64] | None = None,
) -> SetMeasurement:
    """Sum up one set: `logprobs` of the tokens that came, and the comparison if there is one."""
    bad = ~np.isfinite(logprobs)
    against = None
    if kl is not None:
        assert agrees is not None and reference_logprobs is not None, "they come together"
        bad |= ~np.isfinite(kl)
        against = divergence(kl, agrees, reference_logprobs)
    return SetMeasurement(
        texts=texts,
        tokens=int(logprobs.size),
        non_finite=int(np.count_nonzero(bad)),
        perplexity=perplexity(logprobs),
        against=against,
    )
