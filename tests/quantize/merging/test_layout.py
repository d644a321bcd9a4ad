"""Headers of merged shards: what readers accept, whatever the base's order and dtypes."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.bases.headers import ITEM_SIZE, read_header
from adapters.bases.shards import open_base
from adapters.errors import BaseError
from adapters.intake.merging import Edit, MergePlan
from adapters.models import BaseDescriptor
from quantize.merging.layout import Places, planned_shards
from quantize.merging.writing import Writer, seal_shard, write_shard

NOTHING = MergePlan((), {}, {}, (), (), "")
BASE = BaseDescriptor(
    digest="sha256:0",
    architecture="LlamaForCausalLM",
    model_type="llama",
    dtype="bfloat16",
    vocab_size=4,
    context_length=8,
    tied_embeddings=False,
    modules=(),
    parameters={},
)


def _model(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of several dtypes and of odd sizes, as a base keeps them."""
    found = {
        "wide": torch.arange(3, dtype=torch.float32) / 3,
        "half": torch.arange(5).to(torch.bfloat16) / 7,
        "codes": torch.arange(7, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
    }
    folder.mkdir()
    save_file(found, folder / "model.safetensors", metadata={"made": "by hand"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return found


def _written(
    folder: Path, plan: MergePlan, dtype: str | None, tmp_path: Path
) -> dict[str, torch.Tensor]:
    files = open_base(folder)
    (shard,) = planned_shards(files, BASE, plan, dtype)
    told: list[int] = []
    write_shard(shard, tmp_path, Places(files), told.append)
    seal_shard(shard, tmp_path)
    path = tmp_path / "model.safetensors"
    header = read_header(path)
    assert sum(told) == shard.size == path.stat().st_size
    for info in header.tensors.values():
        assert info.start % ITEM_SIZE[info.dtype] == 0
    assert header.metadata == {"format": "pt", "made": "by hand"}
    return load_file(path)


def test_nothing_changed_is_the_same_bytes(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")
    found = _written(tmp_path / "base", NOTHING, None, tmp_path)
    theirs = read_header(tmp_path / "base" / "model.safetensors")
    ours = read_header(tmp_path / "model.safetensors")
    assert list(ours.tensors) == list(theirs.tensors)
    data = (tmp_path / "base" / "model.safetensors").read_bytes()[len(theirs.raw) :]
    assert (tmp_path / "model.safetensors").read_bytes()[len(ours.raw) :] == data
    for name, value in model.items():
        assert torch.equal(found[name], value)


def test_other_sizes_stay_readable(tmp_path: Path) -> None:
    """Three tensors of 16 bits before one of 32 would leave it where it cannot be viewed."""
    model = _model(tmp_path / "base")
    new = torch.arange(3).to(torch.bfloat16)
    edits = (Edit("head", (3,), (), lambda: new, None, "head"),)
    plan = MergePlan(edits, {}, {}, (), (), "")
    for dtype in ("bfloat16", "float32", None):
        found = _written(tmp_path / "base", plan, dtype, tmp_path)
        floats = None if dtype is None else getattr(torch, dtype)
        for name, value in {**model, "head": new}.items():
            wanted = floats if floats is not None and value.is_floating_point() else value.dtype
            assert torch.equal(found[name], value.to(wanted)), name


def test_every_part_is_waited_for(tmp_path: Path) -> None:
    """Also the one that begins at the byte where an empty one does."""
    _model(tmp_path / "base")
    new = torch.arange(3).to(torch.bfloat16)
    plan = MergePlan((Edit("head", (3,), (), lambda: new, None, "head"),), {}, {}, (), (), "")
    files = open_base(tmp_path / "base")
    (shard,) = planned_shards(files, BASE, plan, "float32")
    told: list[int] = []
    with Writer(tmp_path, Places(files), told.append) as writer:
        begun = writer.begin(shard)
        assert len(set(begun.futures)) == len(begun.futures)
        begun.result()
        assert sum(told) == shard.size


@pytest.mark.parametrize("fault", [errno.EXDEV, errno.ENOSYS, None])
def test_without_copy_file_range(
    fault: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems refuse it, and some say that nothing was copied."""

    def refused(*arguments: object, **named: object) -> int:
        if fault is not None:
            raise OSError(fault, "refused")
        return 0

    monkeypatch.setattr("os.copy_file_range", refused)
    model = _model(tmp_path / "base")
    for name, value in _written(tmp_path / "base", NOTHING, None, tmp_path).items():
        assert torch.equal(value, model[name])


def test_a_base_that_shrinks_meanwhile_is_told(tmp_path: Path) -> None:
    _model(tmp_path / "base")
    files = open_base(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    for dtype in (None, "float16"):
        (shard,) = planned_shards(files, BASE, NOTHING, dtype)
        path.write_bytes(path.read_bytes()[: len(files.shards["model.safetensors"].raw) + 1])
        with pytest.raises(BaseError, match="changed while it was read"):
            write_shard(shard, tmp_path, Places(files), lambda count: None)
        assert not (tmp_path / "model.safetensors").exists()
