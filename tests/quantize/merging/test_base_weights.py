"""A QLoRA merged into what it was trained on is the model that bitsandbytes and PEFT ran."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.bases.headers import read_header
from adapters.catalog import Catalog
from adapters.errors import AdapterctlError, BaseError, UsageError
from quantize.formats.fourbit import largest, round_trip, rounded_scales
from quantize.merging import fourbit
from quantize.merging.fourbit import Rounding, rounded
from quantize.merging.layout import Place
from quantize.merging.merge import Watcher, merge
from quantize.merging.models import Merged
from tests.adapters.intake.fine_tunes import everywhere, tune
from tests.quantize.conftest import Shop
from tests.quantize.formats.make_artifacts import HERE
from tests.quantize.formats.material import llama, tokens, values
from tests.quantize.merging.test_parity import KINDS, load, train
from tests.quantize.merging.test_resuming import bytes_of

Run = Callable[..., Merged]
SHARDS = "3KB"


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """The bases `float32` and `bfloat16` (the same values), `shards` in many, `nf4`, and the
    QLoRA of the artifacts for each under the base's name with `-qlora`."""
    root = tmp_path_factory.mktemp("qlora")
    llama(root / "float32", torch.float32)
    llama(root / "bfloat16", torch.bfloat16)
    model: Any = AutoModelForCausalLM.from_pretrained(root / "bfloat16", dtype=torch.bfloat16)
    model.save_pretrained(root / "shards", max_shard_size=SHARDS)
    shutil.copytree(HERE / "nf4", root / "nf4")
    with Catalog.init(root / "store") as found:
        for name in ("float32", "bfloat16", "shards", "nf4"):
            found.base_add(name, root / name)
            found.register(str(HERE / "qlora"), name=f"{name}-qlora", base=name, tag=None)
        yield found


@pytest.fixture
def run(catalog: Catalog, tmp_path: Path) -> Run:
    def merged(base: str, **options: Any) -> Merged:
        out = tmp_path / f"merged-{len(list(tmp_path.iterdir()))}"
        return merge(catalog, f"{base}-qlora", out, **options)

    return merged


def weights(merged: Merged) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in Path(merged.path).glob("*.safetensors"):
        found |= load_file(shard)
    return found


def logits(merged: Merged, dtype: torch.dtype) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(merged.path, dtype=dtype).eval()
    with torch.inference_mode():
        found = model(tokens()).logits.to(torch.float32)
    assert isinstance(found, torch.Tensor)
    return found


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_in_fp32_it_is_what_bitsandbytes_and_peft_compute(run: Run) -> None:
    theirs = load_file(HERE / "qlora_logits.safetensors")["float32"]
    dequantized = run("float32", base_weights="dequantized")
    assert far(logits(dequantized, torch.float32), theirs) < 1e-5
    assert far(logits(run("float32"), torch.float32), theirs) > 0.02
    used = dequantized.report.base_weights
    assert (used.weights, used.rounding, used.double_quantization) == ("dequantized", "nf4", True)
    assert used.parameters == 2 * 7


def test_in_bf16_only_the_activations_are_rounded_otherwise(run: Run) -> None:
    theirs = load_file(HERE / "qlora_logits.safetensors")["bfloat16"]
    ours = far(logits(run("bfloat16", base_weights="dequantized"), torch.bfloat16), theirs)
    original = far(logits(run("bfloat16"), torch.bfloat16), theirs)
    assert ours < 0.02
    assert original > 3 * ours


def test_all_linear_layers_but_the_head_are_what_their_four_bits_hold(run: Run) -> None:
    """Also those that the adapter leaves alone, and everything else is the base's."""
    found = weights(run("bfloat16", base_weights="dequantized", dtype="float32"))
    base = {name: tensor.float() for name, tensor in weights(run("bfloat16")).items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(found[name], base[name]), name
    changed = "model.layers.0.mlp.up_proj.weight"
    assert 0.05 < far(found[changed], base[changed]) < 0.15


def test_a_checkpoint_gives_the_same_as_the_base_rounded_as_it_was(run: Run) -> None:
    one = run("bfloat16", base_weights="dequantized")
    other = run("bfloat16", base_weights="dequantized", nf4_checkpoint=HERE / "nf4")
    assert bytes_of(Path(one.path)) == bytes_of(Path(other.path))
    checkpoint = other.report.base_weights.checkpoint
    assert checkpoint is not None and checkpoint.reference == str(HERE / "nf4")


def test_a_four_bit_base_is_merged_into_what_it_holds(run: Run) -> None:
    merged = run("nf4", base_weights="dequantized")
    expected = weights(run("bfloat16", base_weights="dequantized"))
    found = weights(merged)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "quantization_config" not in json.loads((Path(merged.path) / "config.json").read_text())
    assert logits(merged, torch.bfloat16).isfinite().all()


def test_both_merges_are_compared_while_one_is_written(run: Run) -> None:
    one = run("bfloat16", compare_base_weights=True, dtype="float32")
    other = run("bfloat16", compare_base_weights=True, base_weights="dequantized", dtype="float32")
    compared = one.report.base_weights.compared
    assert compared is not None
    assert compared == other.report.base_weights.compared
    first, second = weights(one), weights(other)
    assert {item.parameter for item in compared.parameters} == {
        name for name in first if not torch.equal(first[name], second[name])
    }
    for item in compared.parameters:
        expected = far(second[item.parameter], first[item.parameter])
        assert item.relative == pytest.approx(expected, rel=1e-4)
    assert compared.worst is not None
    assert 0.05 < compared.overall <= compared.worst.relative < 0.15


def test_a_broken_off_comparison_goes_on(catalog: Catalog, run: Run, tmp_path: Path) -> None:
    whole = run("shards", compare_base_weights=True)
    assert whole.report.shards > 3

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        merge(
            catalog,
            "shards-qlora",
            out,
            compare_base_weights=True,
            watch=Watcher(progress=stop),
        )
    merged = merge(catalog, "shards-qlora", out, compare_base_weights=True)
    assert merged.report.shards_resumed > 0
    assert merged.report.base_weights == whole.report.base_weights
    assert bytes_of(out) == bytes_of(Path(whole.path))


def another_checkpoint(folder: Path) -> Path:
    """An NF4 checkpoint of the same architecture with other weights: its scales are turned."""
    shutil.copytree(HERE / "nf4", folder)
    found = load_file(folder / "model.safetensors")
    found = {
        name: tensor.flip(0) if name.endswith(".weight") and tensor.dtype is torch.uint8 else tensor
        for name, tensor in found.items()
    }
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return folder


REFUSED: dict[str, tuple[str, dict[str, Any], type[AdapterctlError], str]] = {
    "a rounded base's original": (
        "nf4",
        {},
        BaseError,
        "original 16-bit weights and merge that, or merge into .* --base-weights dequantized",
    ),
    "a rounded base compared": (
        "nf4",
        {"base_weights": "dequantized", "compare_base_weights": True},
        UsageError,
        "is a four-bit checkpoint itself and holds no other weights",
    ),
    "a checkpoint for nothing": (
        "bfloat16",
        {"nf4_checkpoint": HERE / "nf4"},
        UsageError,
        "--nf4-checkpoint is what --base-weights dequantized reads",
    ),
    "no four bits": (
        "bfloat16",
        {"base_weights": "dequantized", "nf4_checkpoint": "bfloat16"},
        BaseError,
        "holds no four-bit weights of bitsandbytes",
    ),
    "no checkpoint": (
        "bfloat16",
        {"base_weights": "dequantized", "nf4_checkpoint": Path("/nowhere")},
        BaseError,
        "/nowhere does not exist",
    ),
    "another model's": (
        "bfloat16",
        {"base_weights": "dequantized", "nf4_checkpoint": "another"},
        BaseError,
        "is no rounding of the base's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_one_clear_line(
    name: str, run: Run, catalog: Catalog, tmp_path: Path
) -> None:
    base, options, kind, message = REFUSED[name]
    given = dict(options)
    if given.get("nf4_checkpoint") == "another":
        given["nf4_checkpoint"] = another_checkpoint(tmp_path / "another")
    elif given.get("nf4_checkpoint") == "bfloat16":
        given["nf4_checkpoint"] = Path(catalog.base("bfloat16").path.removeprefix("file://"))
    before = set(tmp_path.iterdir())
    with pytest.raises(kind, match=message) as error:
        run(base, **given)
    assert "\n" not in error.value.message
    assert set(tmp_path.iterdir()) == before


def test_an_adapter_of_16_bit_training_is_warned_of(
    catalog: Catalog, run: Run, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(HERE / "qlora", trained)
    (trained / "hyperparameters.yaml").write_text("precision: bf16-true\n")
    catalog.register(str(trained), name="bf16-qlora", base="bfloat16", tag=None)
    (warning,) = run("bf16", base_weights="dequantized").report.warnings
    assert "trained on bf16 weights" in warning
    assert run("bf16").report.warnings == ()


def test_a_full_fine_tune_has_no_other_weights(catalog: Catalog, run: Run, tmp_path: Path) -> None:
    tune(Path(catalog.base("bfloat16").path.removeprefix("file://")), tmp_path / "t", everywhere(1))
    catalog.register(str(tmp_path / "t"), name="full-qlora", base="bfloat16", tag=None)
    with pytest.raises(UsageError, match="is a full fine-tune"):
        run("full", base_weights="dequantized")


def test_gpt2s_layers_are_turned_before_they_are_rounded(shop: Shop, tmp_path: Path) -> None:
    """transformers turns a Conv1D for bitsandbytes, so the blocks run along its inputs."""
    train(load(shop.base("gpt2"), torch.float32), KINDS["lora-gpt2"], tmp_path / "adapter")
    shop.register(tmp_path / "adapter", "turned", "gpt2")
    original = weights(merge(shop.catalog, "turned", tmp_path / "original"))
    dequantized = weights(
        merge(shop.catalog, "turned", tmp_path / "dequantized", base_weights="dequantized")
    )
    base = load_file(shop.base("gpt2") / "model.safetensors")
    name = next(n for n in base if n.endswith("h.0.attn.c_attn.weight"))
    sequence = base[name].T.reshape(-1)
    absmax = largest(sequence, 64)
    expected = round_trip(sequence, absmax, rounded_scales(absmax), "nf4")
    expected = expected.reshape(base[name].T.shape).T - base[name]
    torch.testing.assert_close(dequantized[name] - original[name], expected, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 40),
    step=st.integers(1, 40),
    double=st.booleans(),
    turned=st.booleans(),
    seed=st.integers(0, 9),
)
def test_by_rows_is_the_same_as_as_a_whole(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    width: int,
    step: int,
    double: bool,
    turned: bool,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "x.safetensors"
    weight = values((rows, width), seed)
    save_file({"x": weight}, path)
    sequence = (weight.T if turned else weight).reshape(-1)
    absmax = largest(sequence, 64)
    scales = rounded_scales(absmax) if double else absmax
    shape = (width, rows) if turned else (rows, width)
    expected = round_trip(sequence, absmax, scales, "nf4").reshape(shape)
    expected = (expected.T if turned else expected).to(torch.bfloat16).float()
    place = Place(path, read_header(path).tensors["x"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fourbit, "_STEP", 128)
        made = rounded(place, "x", Rounding("nf4", double, torch.bfloat16), turned=turned)
        found = made.open()
    parts = [found(start, min(rows, start + step)) for start in range(0, rows, step)]
    assert torch.equal(torch.cat(parts), expected)
