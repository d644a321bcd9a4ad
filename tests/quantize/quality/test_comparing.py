"""Sums over positions, against formulas as they are written."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.quality.comparing import (
    HISTOGRAM_EDGES,
    divergence,
    perplexity,
    set_measurement,
)

LOGPROBS = st.lists(st.floats(-60, 0), min_size=1, max_size=40)
NATS = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-12, 1e3)),
    min_size=1,
    max_size=200,
)


@settings(deadline=None)
@given(LOGPROBS)
def test_perplexity_is_the_geometric_mean_of_1_over_p(logprobs: list[float]) -> None:
    product = math.prod(math.exp(-value / len(logprobs)) for value in logprobs)
    assert perplexity(np.array(logprobs)) == pytest.approx(product, rel=1e-9)


def test_perplexity_of_a_uniform_choice_is_its_size() -> None:
    assert perplexity(np.full(7, -math.log(50))) == pytest.approx(50)


@pytest.mark.parametrize("logprobs", [[], [-1.0, math.nan], [-1.0, -math.inf], [-1e9]])
def test_what_has_no_perplexity(logprobs: list[float]) -> None:
    assert perplexity(np.array(logprobs)) is None


@settings(deadline=None)
@given(NATS)
def test_divergence_sums_up(nats: list[float]) -> None:
    kl = np.array(nats)
    found = divergence(kl, kl < 1, np.full(kl.size, -1.0))
    assert found.kl_mean == pytest.approx(math.fsum(nats) / len(nats))
    assert found.kl_max == max(nats)
    # Linear between the two nearest ranks.
    place = 0.99 * (len(nats) - 1)
    low, high = sorted(nats)[math.floor(place)], sorted(nats)[math.ceil(place)]
    assert found.kl_p99 == pytest.approx(low + (high - low) * (place - math.floor(place)))
    assert found.top1_agreement == pytest.approx(sum(value < 1 for value in nats) / len(nats))
    assert found.reference_perplexity == pytest.approx(math.e)
    edges = (-math.inf, *HISTOGRAM_EDGES, math.inf)
    counts = [sum(low <= value < high for value in nats) for low, high in pairwise(edges)]
    assert list(found.kl_histogram) == counts


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_figure_that_is_not_finite_is_no_mean(bad: float) -> None:
    kl = np.array([0.1, bad])
    found = divergence(kl, np.array([True, False]), np.array([-1.0, -2.0]))
    assert found.kl_mean is None and found.kl_p99 is None and found.kl_max is None
    assert found.top1_agreement == 0.5
    assert sum(found.kl_histogram) == (1 if math.isnan(bad) else 2)
    assert found.kl_histogram[-1] == (0 if math.isnan(bad) else 1)


def test_a_set_counts_its_bad_positions_once() -> None:
    found = set_measurement(
        2,
        np.array([-1.0, math.nan, -math.inf, -1.0]),
        np.array([0.0, math.nan, 0.1, math.inf]),
        np.array([True, False, False, True]),
        np.array([-1.0, -1.0, -1.0, -1.0]),
    )
    assert (found.texts, found.tokens, found.non_finite) == (2, 4, 3)
    assert found.perplexity is None
    assert found.against is not None and found.against.reference_perplexity is not None


def test_what_is_summed_up_survives_json() -> None:
    found = set_measurement(
        1, np.array([-1.0]), np.array([math.inf]), np.array([False]), np.array([-1.0])
    )
    assert type(found).model_validate_json(found.model_dump_json()) == found
