"""What a quantizer is given (--dtype float32) was not rounded before, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.catalog import Catalog
from quantize.merging.merge import merge
from tests.adapters.intake.conftest import MODELS
from tests.quantize.merging.test_parity import KINDS, load, train


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Catalog, Path]]:
    """The bases `llama` and `gpt2` in bf16."""
    root = tmp_path_factory.mktemp("halves")
    with Catalog.init(root / "store") as catalog:
        for name in ("llama", "gpt2"):
            torch.manual_seed(5)
            MODELS[name]().to(torch.bfloat16).save_pretrained(root / name)
            catalog.base_add(name, root / name)
        yield catalog, root


@pytest.mark.parametrize("name", KINDS)
def test_it_is_rounded_once(name: str, halves: tuple[Catalog, Path], tmp_path: Path) -> None:
    """So rounding it now gives the bf16 merge bit by bit, and it is no bf16 itself."""
    catalog, root = halves
    kind = KINDS[name]
    base = "llama" if "llama" in kind.bases else "gpt2"
    train(load(root / base, torch.float32), kind, tmp_path / "adapter")
    catalog.register(str(tmp_path / "adapter"), name=name, base=base, tag=None)
    merge(catalog, name, tmp_path / "exact", dtype="float32")
    merge(catalog, name, tmp_path / "rounded")
    exact, rounded = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("exact", "rounded")
    )
    assert all(tensor.dtype is torch.float32 for tensor in exact.values())
    assert all(torch.equal(exact[n].to(torch.bfloat16), rounded[n]) for n in rounded)
    assert any(not torch.equal(exact[n], rounded[n].float()) for n in rounded)
