"""Random adapters for load tests: what registration takes, many in one store, all different."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.catalog import Catalog
from adapters.errors import BaseError
from loadtests.adapters import ALL_LINEAR, ATTENTION, make_store, write_adapter


def test_store_has_the_base_and_all_adapters(tmp_path: Path, tiny_base: Path) -> None:
    store = tmp_path / "store"
    told: list[str] = []
    names = make_store(store, count=3, rank=4, base_dir=tiny_base, say=told.append)
    assert names == ["a0000", "a0001", "a0002"]
    with Catalog.open(store) as catalog:
        records = catalog.adapters()
        versions = [record.versions[1] for record in records]
        assert [record.name for record in records] == names
        assert {(v.rank, v.lane, v.method) for v in versions} == {(4, "hot", "lora")}
        assert len({v.digest for v in versions}) == 3
        # No scale and no rank was changed on the way in.
        manifest = catalog.version_manifest("a0001")
    assert manifest.notes == ()
    assert list(tmp_path.iterdir()) == [store]  # nothing is left of the sources


def test_another_prefix_and_rank_join_the_same_store(tmp_path: Path, tiny_base: Path) -> None:
    store = tmp_path / "store"
    make_store(store, count=2, rank=2, base_dir=tiny_base, targets=ATTENTION)
    make_store(store, count=3, rank=2, base_dir=tiny_base, targets=ATTENTION)
    make_store(store, count=2, rank=2, base_dir=tiny_base, targets=ATTENTION, prefix="big")
    with Catalog.open(store) as catalog:
        records = catalog.adapters()
    assert [r.name for r in records] == ["a0000", "a0001", "a0002", "big0000", "big0001"]
    assert all(len(record.versions) == 1 for record in records)
    assert len({record.versions[1].digest for record in records}) == 5


def test_size_of_what_is_added_is_the_scale_at_any_rank(tmp_path: Path, tiny_base: Path) -> None:
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(1))
    for rank in (1, 8, 64):
        write_adapter(tmp_path / str(rank), tiny_base, rank=rank, scale=0.25, seed=rank)
        tensors = load_file(tmp_path / str(rank) / "adapter_model.safetensors")
        assert len(tensors) == 2 * 2 * len(ALL_LINEAR)
        name = "base_model.model.model.layers.1.mlp.up_proj"
        a, b = (tensors[f"{name}.lora_{side}.weight"].float() for side in "AB")
        added = (x @ a.T @ b.T).std().item()
        assert added == pytest.approx(0.25, rel=0.5)


def test_seed_makes_the_adapter(tmp_path: Path, tiny_base: Path) -> None:
    files = []
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        write_adapter(tmp_path / name, tiny_base, rank=2, seed=seed)
        files.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_base_without_llama_shapes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_embd": 32}')
    with pytest.raises(BaseError, match="Llama-like"):
        write_adapter(tmp_path / "adapter", tmp_path)
    assert not (tmp_path / "adapter").exists()
