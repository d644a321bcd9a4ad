"""KL divergence of rows against the formula, and what float16 on disk costs it."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.vllm_plugin.distributions import (
    DistributionFile,
    kl_divergence,
    log_probabilities,
)

LOGITS = st.lists(
    st.tuples(*[st.one_of(st.floats(-1e4, 1e4), st.just(-math.inf))] * 2), min_size=1, max_size=12
).filter(lambda pairs: all(any(math.isfinite(pair[i]) for pair in pairs) for i in (0, 1)))


def probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(value - top) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


@settings(deadline=None)
@given(LOGITS)
def test_kl_is_the_slow_formula(pairs: list[tuple[float, float]]) -> None:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    top = max(second)
    total = math.log(math.fsum(math.exp(value - top) for value in second)) + top
    wanted = math.fsum(
        p * (math.log(p) - (value - total))
        for p, value in zip(probabilities(first), second, strict=True)
        if p > 0
    )
    found = kl_divergence(
        *(log_probabilities(torch.tensor([row], dtype=torch.float64)) for row in (first, second))
    )
    assert found.shape == (1,)
    assert float(found) == pytest.approx(max(wanted, 0.0), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(LOGITS)
def test_kl_of_a_distribution_and_itself_is_nothing(pairs: list[tuple[float, float]]) -> None:
    row = log_probabilities(torch.tensor([[pair[0] for pair in pairs]]))
    assert float(kl_divergence(row, row)) == 0


@pytest.mark.parametrize("bad", [[1.0, math.nan], [1.0, math.inf], [-math.inf, -math.inf]])
def test_a_row_without_a_distribution_is_nan(bad: list[float]) -> None:
    good = [0.0, 1.0]
    rows = log_probabilities(torch.tensor([good, bad, good]))
    sound = log_probabilities(torch.tensor([good, good, good]))
    for found in (kl_divergence(rows, sound), kl_divergence(sound, rows)):
        assert found.isnan().tolist() == [False, True, False]


def distributions(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Logits like a model's: a wide body, a few that stand out, some rows nearly certain."""
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, generator=drawn) * 3
    logits[:, :5] += torch.linspace(0, 25, rows)[:, None] + torch.randn(rows, 5, generator=drawn)
    return logits


def test_float16_on_disk_costs_a_millionth(tmp_path: Path) -> None:
    logits = distributions(48, 49152, seed=1)
    exact = log_probabilities(logits)
    file = DistributionFile(tmp_path / "rows", 49152, rows=48)
    file.write(16, exact[16:])
    file.write(0, exact[:16])
    kept = log_probabilities(torch.cat([file.read(0, 20), file.read(20, 28)]))
    file.close()
    assert (tmp_path / "rows").stat().st_size == 48 * 49152 * 2
    itself = kl_divergence(kept, exact)
    assert float(itself.mean()) < 1e-6 and float(itself.max()) < 2e-6
    # As far off as a nearly lossless candidate is.
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    candidate = log_probabilities(logits + 0.02 * noise)
    wanted = kl_divergence(exact, candidate)
    assert 2e-5 < float(wanted.mean()) < 5e-4
    found = kl_divergence(kept, candidate)
    assert float(found.mean()) == pytest.approx(float(wanted.mean()), rel=0.02)


def test_without_normalising_again_float16_would_be_far_off(tmp_path: Path) -> None:
    """Why it is done: the same figures, taken as they were rounded."""
    exact = log_probabilities(distributions(48, 49152, seed=1))
    rounded = exact.to(torch.float16).double()
    raw = (rounded.exp() * (rounded - exact)).sum(-1)
    assert float(raw.abs().max()) > 1e-5


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    DistributionFile(tmp_path / "rows", 10, rows=4).close()
    os.truncate(tmp_path / "rows", 75)
    file = DistributionFile(tmp_path / "rows", 10)
    assert file.read(0, 3).shape == (3, 10)
    with pytest.raises(EOFError):
        file.read(2, 2)
    file.close()


def test_a_disk_without_the_space_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        DistributionFile(tmp_path / "rows", 10, rows=4)
    assert not (tmp_path / "rows").exists()
