"""A merge that is killed leaves nothing that looks done, and the next run ends it bit by bit."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import AlreadyExists, BaseError, DiskFull, InUse, UsageError
from quantize.merging.merge import Watcher, merge
from quantize.merging.workspace import REPORT, Workspace
from tests.adapters.intake.artifact_builders import PREFIX, Q0, adapter_parts, write_parts
from tests.quantize.conftest import Shop
from tests.quantize.forks import Forks


@pytest.fixture(scope="module")
def reference(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter on the base in many shards that changes most of them."""
    folder = tmp_path_factory.mktemp("resuming") / "adapter"
    write_parts(folder, *adapter_parts(shop.catalog.base_descriptor("shards")))
    shop.register(folder, "resumed", "shards")
    return "resumed"


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file but the report, which holds the cost of its run."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != REPORT
    }


def killed(forks: Forks, shop: Shop, reference: str, out: Path, allowed: int) -> None:
    """Runs a merge into `out` and kills it after `allowed` bytes."""
    process = forks.merge(shop.root / "store", reference, out, allowed)
    assert forks.said() == "killing"
    process.kill()
    while process.running:
        pass


def test_killed_and_run_again(forks: Forks, shop: Shop, reference: str, tmp_path: Path) -> None:
    merge(shop.catalog, reference, tmp_path / "undisturbed")
    expected = bytes_of(tmp_path / "undisturbed")
    assert len(expected) > 6, "the base must lie in several shards"
    total = sum((tmp_path / "undisturbed" / name).stat().st_size for name in expected)
    out = tmp_path / "out"
    for part in (0.2, 0.55, 0.8):
        killed(forks, shop, reference, out, int(total * part))
        assert not out.exists()
        hidden = tmp_path / ".out.merging"
        done = {path.name: path for path in hidden.glob("*.safetensors")}
        assert {n: expected[n] for n in done} == {n: bytes_of(hidden)[n] for n in done}
    finished = merge(shop.catalog, reference, out).report
    assert 0 < finished.shards_resumed < finished.shards
    assert bytes_of(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "undisturbed"]


def test_what_was_measured_before_the_kill_is_in_the_report(
    forks: Forks, shop: Shop, reference: str, tmp_path: Path
) -> None:
    whole = merge(shop.catalog, reference, tmp_path / "whole").report
    killed(forks, shop, reference, tmp_path / "out", whole.size // 2)
    again = merge(shop.catalog, reference, tmp_path / "out").report
    cost = {"seconds", "peak_rss", "shards_resumed"}
    assert again.model_dump(exclude=cost) == whole.model_dump(exclude=cost)


def test_other_inputs_start_anew(forks: Forks, shop: Shop, reference: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(forks, shop, reference, out, 60_000)
    assert list((tmp_path / ".out.merging").glob("*.safetensors"))
    done = merge(shop.catalog, reference, out, dtype="bfloat16").report
    assert done.shards_resumed == 0
    for path in out.glob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}


def _stopping(at: int, error: BaseException) -> Watcher:
    def progress(done: int, total: int) -> None:
        if done >= at:
            raise error

    return Watcher(progress=progress)


def test_ctrl_c_before_the_first_shard_leaves_nothing(
    shop: Shop, reference: str, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge(shop.catalog, reference, tmp_path / "o", watch=_stopping(1, KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_and_during(
    shop: Shop, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(DiskFull, match="goes on after the last finished shard"):
        merge(shop.catalog, reference, tmp_path / "o", watch=_stopping(1, full))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"needs 4\.\d MB in .*, 0\.0 MB are free"):
        merge(shop.catalog, reference, tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(shop: Shop, reference: str, tmp_path: Path) -> None:
    with Workspace(tmp_path / "out", "plan"), pytest.raises(InUse, match="another merge"):
        merge(shop.catalog, reference, tmp_path / "out")


def _file(out: Path) -> None:
    out.write_text("")


def _full(out: Path) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")


def _link(out: Path) -> None:
    (out.parent / "elsewhere").mkdir()
    out.symlink_to(out.parent / "elsewhere")


@pytest.mark.parametrize("occupy", [_file, _full, _link])
def test_what_is_there_stays(
    occupy: Callable[[Path], None], shop: Shop, reference: str, tmp_path: Path
) -> None:
    occupy(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyExists, match="name another with --out"):
        merge(shop.catalog, reference, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hidden_directory_of_somebody_else_stays(
    shop: Shop, reference: str, tmp_path: Path
) -> None:
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "notes.txt").write_text("mine")
    with pytest.raises(AlreadyExists, match="no merge has made it"):
        merge(shop.catalog, reference, tmp_path / "out")
    assert (tmp_path / ".out.merging" / "notes.txt").read_text() == "mine"


def test_an_empty_directory_is_taken(shop: Shop, reference: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge(shop.catalog, reference, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_no_place(shop: Shop, reference: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        merge(shop.catalog, reference, tmp_path / "no" / "out")


def test_a_composition_has_to_be_made_first(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adapterctl compose"):
        merge(shop.catalog, "resumed*0.5+other*0.5", tmp_path / "out")


def test_another_base_than_was_registered(shop: Shop, reference: str, tmp_path: Path) -> None:
    shard = next(iter(sorted(shop.base("shards").glob("*.safetensors"))))
    kept = shard.read_bytes()
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
    try:
        with pytest.raises(BaseError, match="its files have changed"):
            merge(shop.catalog, reference, tmp_path / "out")
    finally:
        shard.write_bytes(kept)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_written_to_meanwhile(shop: Shop, reference: str, tmp_path: Path) -> None:
    shard = next(iter(sorted(shop.base("shards").glob("*.safetensors"))))

    def progress(done: int, total: int) -> None:
        shard.touch()

    with pytest.raises(BaseError, match="changed while it was merged"):
        merge(shop.catalog, reference, tmp_path / "out", watch=Watcher(progress=progress))
    assert list(tmp_path.iterdir()) == []


def test_float16_that_cannot_hold_a_value(shop: Shop, tmp_path: Path) -> None:
    tensors, config = adapter_parts(shop.catalog.base_descriptor("llama"))
    for side, factor in (("A", 1e3), ("B", 1e4)):
        name = f"{PREFIX}{Q0}.lora_{side}.weight"
        tensors[name] = tensors[name] * factor
    write_parts(tmp_path / "adapter", tensors, config)
    shop.register(tmp_path / "adapter", "large", "llama")
    with pytest.raises(UsageError, match=r"q_proj\.weight' holds values that float16 cannot"):
        merge(shop.catalog, "large", tmp_path / "out", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
