"""The rank above the rounding noise, on changes whose true rank is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from adapters.intake.spectrum import Change, Spectrum, factors, spectrum

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Tuned:
    """A base, a true change of known rank and the fine-tune as it was saved."""

    base: torch.Tensor
    true: torch.Tensor
    saved: torch.Tensor

    @classmethod
    def made(
        cls,
        shape: tuple[int, int],
        rank: int,
        size: float,
        *,
        tuned: torch.dtype = BF16,
        base: torch.dtype = BF16,
        trained_from_wide: bool = False,
        spread: float = 0.0,
        seed: int = 0,
    ) -> Tuned:
        """`size`: of the change relative to the weight; `spread`: of the columns' sizes (log)."""
        source = torch.Generator().manual_seed(seed)
        wide = torch.randn(shape, generator=source, dtype=torch.float64) * 0.02
        wide *= torch.exp(spread * torch.randn(shape[1], generator=source, dtype=torch.float64))
        stored = wide.to(base)
        start = wide if trained_from_wide else stored.double()
        left = torch.randn(shape[0], rank, generator=source, dtype=torch.float64)
        change = left @ torch.randn(rank, shape[1], generator=source, dtype=torch.float64)
        if rank:
            change *= size * start.norm() / change.norm()
        return cls(stored, change, (start + change).to(tuned))

    def spectrum(self) -> tuple[Change, Spectrum, bool]:
        change, turned = Change.of(self.saved, self.base)
        return change, spectrum(change), turned

    def error(self, found: Spectrum, change: Change, turned: bool) -> float:
        """Of B·A against the true change, relative."""
        made = factors(change, found, found.rank, turned=turned)
        product = made.b.double() @ made.a.double()
        return float((product - self.true).norm() / self.true.norm())


@pytest.mark.parametrize(
    ("name", "tuned"),
    {
        "bf16": Tuned.made((512, 512), 16, 0.01),
        "bf16-weak": Tuned.made((512, 512), 16, 0.002),
        "bf16-strong": Tuned.made((512, 512), 16, 0.1),
        "bf16-wide": Tuned.made((256, 768), 16, 0.01),
        "bf16-tall": Tuned.made((768, 256), 16, 0.01),
        "bf16-rank-64": Tuned.made((512, 512), 64, 0.01),
        "bf16-uneven-columns": Tuned.made((512, 512), 16, 0.02, spread=1.0),
        "fp16": Tuned.made((512, 512), 16, 0.01, tuned=F16, base=F16),
        "fp32": Tuned.made((256, 256), 16, 0.01, tuned=F32, base=F32),
        "bf16-of-fp32": Tuned.made((512, 512), 16, 0.01, base=F32),
        "fp32-rank-2": Tuned.made((576, 192), 2, 0.01, tuned=F32, spread=0.5),
        "fp32-of-bf16": Tuned.made((512, 512), 16, 0.01, tuned=F32),
        "fp32-of-rounded": Tuned.made((512, 512), 16, 0.01, tuned=F32, trained_from_wide=True),
        "both-rounded": Tuned.made((512, 512), 16, 0.01, trained_from_wide=True),
        "none": Tuned.made((512, 512), 0, 0.0, base=F32),
    }.items(),
)
def test_the_true_rank_is_found(name: str, tuned: Tuned) -> None:
    true = int(torch.linalg.matrix_rank(tuned.true)) if bool(tuned.true.any()) else 0
    change, found, turned = tuned.spectrum()
    assert found.rank == true
    if true:
        assert tuned.error(found, change, turned) < (0.35 if name == "bf16-weak" else 0.15)


def test_a_change_of_rank_1_is_distorted_by_rounding() -> None:
    """Rounding is not quite independent of what is rounded: some of it has structure of its own."""
    found = Tuned.made((256, 256), 1, 0.01).spectrum()[1]
    assert 1 <= found.rank <= 3
    assert float(found.values[1]) < 0.03 * float(found.values[0])


def test_a_wide_file_of_narrow_values_has_the_narrow_noise() -> None:
    tuned = Tuned.made((512, 512), 16, 0.01)
    _, narrow, _ = tuned.spectrum()
    _, wide, _ = Tuned(tuned.base.float(), tuned.true, tuned.saved.float()).spectrum()
    assert (wide.rank, wide.noise) == (narrow.rank, narrow.noise)


@pytest.mark.parametrize(
    # Measured once: energy of the top 16, error against the true change.
    ("size", "energy", "error"),
    [(0.01, 0.974, 0.021), (0.002, 0.676, 0.217)],
)
def test_the_specifications_figures(size: float, energy: float, error: float) -> None:
    """On 2048 x 2048, where the noise in the top 16 directions is as small as it was there."""
    tuned = Tuned.made((2048, 2048), 16, size)
    change, found, turned = tuned.spectrum()
    assert found.rank == 16
    kept = float((found.values[:16] ** 2).sum()) / found.energy
    assert kept == pytest.approx(energy, abs=0.01)
    assert tuned.error(found, change, turned) == pytest.approx(error, abs=0.02)
    # Rounding explains what is not kept.
    assert found.noise / found.energy == pytest.approx(1 - kept, abs=0.01)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_factors_are_the_truncated_decomposition(shape: tuple[int, int]) -> None:
    """Against numpy's SVD: the same best approximation, its error measured on what is stored."""
    tuned = Tuned.made(shape, min(shape), 0.05, tuned=F32, base=F32)
    change, found, turned = tuned.spectrum()
    exact = tuned.saved.double().numpy() - tuned.base.double().numpy()
    left, values, right = np.linalg.svd(exact, full_matrices=False)
    assert np.allclose(found.values.numpy(), values, atol=1e-7 * values[0])
    for rank in (1, 7, 40):
        made = factors(change, found, rank, turned=turned)
        assert made.b.shape == (shape[0], rank)
        assert made.a.shape == (rank, shape[1])
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        product = made.b.double().numpy() @ made.a.double().numpy()
        assert np.allclose(product, best, atol=1e-6 * values[0])
        assert made.lost == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-6)
        # The singular values are shared evenly.
        assert np.allclose(np.linalg.norm(made.a.numpy(), axis=1) ** 2, values[:rank], rtol=1e-5)
        assert np.allclose(np.linalg.norm(made.b.numpy(), axis=0) ** 2, values[:rank], rtol=1e-5)


def test_noise_alone_is_no_rank_in_a_hundred_matrices() -> None:
    """Of the edge's 99.9 % quantile: all but one or so of a hundred stay below it."""
    found = [
        Tuned.made((96, 64), 0, 0.0, base=F32, seed=seed).spectrum()[1].rank for seed in range(100)
    ]
    assert sum(rank > 0 for rank in found) <= 2
