"""A product added block by block is the sum, rounded once, and measured as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters.bases.headers import read_header
from adapters.errors import BaseError
from adapters.intake import tensors
from adapters.intake.lora import LoraPair
from adapters.intake.merging import Edit, edits_of_pairs
from adapters.intake.raw import LazyTensor
from adapters.models import ModuleSpec
from quantize.merging import adding
from quantize.merging.adding import is_added, write_added
from quantize.merging.layout import Place, Slot

_ROWS, _WIDTH, _RANK = 37, 64, 5


def _lazy(name: str, values: torch.Tensor) -> LazyTensor:
    return LazyTensor(name, "F32", tuple(values.shape), lambda: values)


def _slot(
    folder: Path, base: torch.Tensor, kept: str, b: torch.Tensor, a: torch.Tensor, scale: float
) -> Slot:
    path = folder / "base.safetensors"
    save_file({"other": torch.ones(3), "w": base}, path)
    edit = Edit(
        "w",
        tuple(base.shape),
        (_lazy("a", a), _lazy("b", b)),
        lambda old, a, b: old + scale * (b @ a),
        "w",
        "module",
        added=scale,
    )
    place = Place(path, read_header(path).tensors["w"])
    return Slot("w", kept, tuple(base.shape), place, (edit,))


def _factors() -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return (
        torch.randn(_ROWS, _RANK, generator=drawn) * 0.1,
        torch.randn(_RANK, _WIDTH, generator=drawn) * 0.1,
    )


def _fp32_error(base: torch.Tensor, b: torch.Tensor, a: torch.Tensor, scale: float) -> torch.Tensor:
    """Of base + scale·b·a in fp32, summed in any order: Higham, Accuracy and Stability of
    Numerical Algorithms, (3.5), with one operation more for the scale and one for the base."""
    terms = base.double().abs() + scale * (b.double().abs() @ a.double().abs())
    return terms * (b.shape[1] + 2) * 2.0**-24 * 1.01


@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("kept", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("block", [1, 5 * _WIDTH, _ROWS * _WIDTH, 1 << 18])
def test_it_is_the_sum_rounded_once(
    stored: str, kept: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adding, "_BLOCK", block)
    b, a = _factors()
    base = torch.randn(_ROWS, _WIDTH, generator=torch.Generator().manual_seed(block)).to(
        tensors.TORCH_DTYPE[stored]
    )
    slot = _slot(tmp_path, base, kept, b, a, 0.75)
    assert is_added(slot)
    found = bytearray()
    measured = write_added(slot, found.extend)
    rounded = torch.frombuffer(found, dtype=tensors.TORCH_DTYPE[kept]).view(_ROWS, _WIDTH)
    exact = base.double().addmm(b.double(), a.double(), alpha=0.75)
    kind = torch.finfo(rounded.dtype)
    once = exact.abs().clamp(min=kind.smallest_normal) * kind.eps / 2
    assert ((rounded.double() - exact).abs() <= once + _fp32_error(base, b, a, 0.75)).all()
    assert measured is not None
    assert measured.parameter == "w"
    assert measured.before == pytest.approx(float(base.double().square().sum()), rel=1e-5)
    assert measured.delta == pytest.approx(
        float((0.75 * b.double() @ a.double()).square().sum()), rel=1e-9
    )
    noise = float((rounded.double() - exact).square().sum())
    # fp32 as it is: what its own rounding changed is not measured.
    assert measured.noise == (0 if kept == "F32" else pytest.approx(noise, rel=1e-3))
    again = bytearray()
    assert write_added(slot, again.extend) == measured
    assert again == found, "a merge that is resumed must give the same bytes"


@pytest.mark.parametrize(
    ("kept", "spoil"),
    [
        ("BF16", lambda base: base[30].fill_(float("nan"))),
        ("F32", lambda base: base[0, 1:2].fill_(float("inf"))),
        # float16 ends at 65504.
        ("F16", lambda base: base[36, 63:].fill_(1e5)),
    ],
)
def test_what_is_not_finite_is_never_written(
    kept: str,
    spoil: Callable[[torch.Tensor], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adding, "_BLOCK", 4 * _WIDTH)
    b, a = _factors()
    base = torch.randn(_ROWS, _WIDTH)
    spoil(base)
    found = bytearray()
    assert write_added(_slot(tmp_path, base, kept, b, a, 1.0), found.extend) is None
    assert len(found) < base.numel() * tensors.TORCH_DTYPE[kept].itemsize


def test_a_thread_takes_its_memory_along_to_larger_ones(tmp_path: Path) -> None:
    """The rows of one parameter are wider than the block that the thread had before."""
    for width in (8, (1 << 17) + 24, 16):
        b, a = torch.ones(3, 1), torch.ones(1, width)
        found = bytearray()
        slot = _slot(tmp_path, torch.zeros(3, width), "F32", b, a, 1.0)
        assert write_added(slot, found.extend) is not None
        assert torch.equal(torch.frombuffer(found, dtype=torch.float32), torch.ones(3 * width))


def test_a_base_that_shrinks_or_goes_is_said(tmp_path: Path) -> None:
    b, a = _factors()
    slot = _slot(tmp_path, torch.randn(_ROWS, _WIDTH), "BF16", b, a, 1.0)
    path = tmp_path / "base.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(BaseError, match="ended early: it changed while it was read"):
        write_added(slot, lambda data: None)
    path.unlink()
    with pytest.raises(BaseError, match="cannot read"):
        write_added(slot, lambda data: None)


def test_nothing_else_goes_this_way(tmp_path: Path) -> None:
    b, a = _factors()
    slot = _slot(tmp_path, torch.randn(_ROWS, _WIDTH), "BF16", b, a, 1.0)
    (edit,) = slot.edits
    others = (
        replace(slot, edits=(edit, edit)),
        replace(slot, edits=(replace(edit, added=None),)),
        replace(slot, edits=(replace(edit, reads="v"),)),
        replace(slot, dtype="F64"),
        replace(slot, shape=(_ROWS + 1, _WIDTH)),
        replace(slot, source=None),
        replace(slot, edits=()),
        _slot(tmp_path, torch.tensor(2.5), "F32", b, a, 1.0),
    )
    assert not any(map(is_added, others))


@pytest.mark.parametrize("rank", [1, 2, 16, 256, 300])
def test_a_pair_of_any_rank_goes_this_way(rank: int, tmp_path: Path) -> None:
    """The edits of plain LoRA: the same whichever way they go, up to the last bits of fp32."""
    drawn = torch.Generator().manual_seed(rank)
    a, b = (torch.randn(*s, generator=drawn) for s in ((rank, 96), (50, rank)))
    spec = ModuleSpec(name="m", kind="linear", in_features=96, out_features=50)
    pair = LoraPair(spec, rank, "a", "b", lambda: a, lambda: b, 0)
    (edit,) = edits_of_pairs([pair])
    old = torch.randn(50, 96, generator=drawn)
    slot = _slot(tmp_path, old, "F32", b, a, 1.0)
    slot = replace(slot, edits=(replace(edit, reads="w"),))
    assert is_added(slot)
    found = bytearray()
    assert write_added(slot, found.extend) is not None
    added = torch.frombuffer(found, dtype=torch.float32).view(50, 96)
    apart = (added.double() - edit.apply(old, a, b).double()).abs()
    assert (apart <= 2 * _fp32_error(old, b, a, 1.0)).all()


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)])
def test_a_vector_goes_this_way_too(shape: tuple[int, int], tmp_path: Path) -> None:
    old, b, a = torch.ones(shape), torch.ones(shape[0], 2), torch.ones(2, shape[1])
    found = bytearray()
    assert write_added(_slot(tmp_path, old, "BF16", b, a, 0.5), found.extend) is not None
    assert torch.equal(
        torch.frombuffer(found, dtype=torch.bfloat16), torch.full(shape, 2.0).bfloat16().flatten()
    )
