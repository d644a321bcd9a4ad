"""What lies in a merged directory: the base's layout, its bytes where nothing changes, the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters.bases.headers import read_header
from adapters.catalog import Catalog
from adapters.errors import BaseError
from adapters.serving.document import ServingChoice
from quantize.merging.merge import merge
from quantize.merging.models import Merged
from quantize.merging.workspace import REPORT
from tests.adapters.intake.artifact_builders import PREFIX, Q0, adapter_parts, write_parts
from tests.adapters.intake.fine_tunes import everywhere, load, logits, tune
from tests.quantize.conftest import Shop


def lora(shop: Shop, base: str, folder: Path, size: float = 1.0, leaf: str = "") -> Path:
    """A LoRA whose change is `size` times the usual, of modules with `leaf` in their names."""
    tensors, config = adapter_parts(shop.catalog.base_descriptor(base))
    kept = {name: value * size**0.5 for name, value in tensors.items() if leaf in name}
    if leaf:
        config["target_modules"] = [leaf]
    write_parts(folder, kept, config)
    return folder


@pytest.mark.parametrize("base", ["llama", "shards", "llama-bf16", "fused"])
def test_the_layout_is_the_bases(base: str, shop: Shop, tmp_path: Path) -> None:
    shop.merged(lora(shop, base, tmp_path / "adapter", leaf="q_proj"), base, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in shop.base(base).iterdir()} | {REPORT}
    for path in shop.base(base).glob("*.safetensors"):
        ours, theirs = read_header(tmp_path / "out" / path.name), read_header(path)
        assert list(ours.tensors) == list(theirs.tensors)
        places = [[(t.dtype, t.shape) for t in h.tensors.values()] for h in (ours, theirs)]
        assert places[0] == places[1]
        found, before = load_file(tmp_path / "out" / path.name), load_file(path)
        for name, value in before.items():
            assert torch.equal(found[name], value) == ("q_proj" not in name), name
    config = (tmp_path / "out" / "config.json").read_bytes()
    assert config == (shop.base(base) / "config.json").read_bytes()


def test_a_new_head_is_in_the_index(shop: Shop, tmp_path: Path) -> None:
    tensors, config = adapter_parts(shop.catalog.base_descriptor("shards"))
    tensors[f"{PREFIX}lm_head.lora_A.weight"] = torch.ones(4, 32)
    tensors[f"{PREFIX}lm_head.lora_B.weight"] = torch.ones(96, 4)
    config["target_modules"].append("lm_head")
    write_parts(tmp_path / "adapter", tensors, config)
    done = shop.merged(tmp_path / "adapter", "shards", tmp_path / "out").report
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert index["weight_map"]["lm_head.weight"] == files[-1]
    sizes = [read_header(tmp_path / "out" / name) for name in files]
    assert index["metadata"]["total_size"] == sum(h.file_size - len(h.raw) for h in sizes)
    assert (done.added, done.shards) == (("lm_head.weight",), len(files))
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("base", ["llama", "llama-bf16"])
def test_another_dtype_is_one_rounding(base: str, dtype: str, shop: Shop, tmp_path: Path) -> None:
    artifact = lora(shop, base, tmp_path / "adapter")
    exact = shop.merged(artifact, base, tmp_path / "exact", dtype="float32")
    shop.catalog.rm(exact.name, force=True)
    shop.merged(artifact, base, tmp_path / "out", dtype=dtype)  # type: ignore[arg-type]
    wide = load_file(tmp_path / "exact" / "model.safetensors")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(value, wide[name].to(getattr(torch, dtype))), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_the_rounding_is_measured_and_warned_of(shop: Shop, tmp_path: Path) -> None:
    small = lora(shop, "llama-bf16", tmp_path / "small", size=1e-4)
    done = shop.merged(small, "llama-bf16", tmp_path / "out").report
    name = f"{Q0}.weight"
    before = load_file(shop.base("llama-bf16") / "model.safetensors")[name].float()
    tensors, _ = adapter_parts(shop.catalog.base_descriptor("llama-bf16"))
    a, b = (tensors[f"{PREFIX}{Q0}.lora_{side}.weight"] for side in "AB")
    delta = 2 * 1e-4 * b @ a
    noise = (before + delta).bfloat16().float() - (before + delta)
    found = next(c for c in done.changed if c.parameter == name)
    assert found.delta == pytest.approx(delta.norm().item(), rel=1e-4)
    assert found.relative == pytest.approx((delta.norm() / before.norm()).item(), rel=1e-4)
    assert found.noise == pytest.approx((noise.norm() / delta.norm()).item(), rel=1e-2)
    assert done.rounding.overall > 0.5
    assert done.rounding.worst is not None
    assert done.rounding.worst.noise == max(c.noise or 0 for c in done.changed)
    (warning,) = done.warnings
    assert f"rounding to bfloat16 is {done.rounding.overall:.0%} as large" in warning
    large = lora(shop, "llama-bf16", tmp_path / "large")
    assert shop.merged(large, "llama-bf16", tmp_path / "other").report.warnings == ()


def test_the_report_lies_beside_the_model(shop: Shop, tmp_path: Path) -> None:
    done = shop.merged(lora(shop, "qwen3", tmp_path / "adapter"), "qwen3", tmp_path / "out")
    assert Merged.model_validate_json((tmp_path / "out" / REPORT).read_text()) == done
    report = done.report
    version = shop.catalog.show(done.name)
    assert (report.adapter.digest, report.base.digest) == (version.digest, version.base_digest)
    assert done.digest == version.digest
    assert (report.parameters_changed, report.values_changed) == (8, 8 * 32 * 48)
    assert report.size == (tmp_path / "out" / "model.safetensors").stat().st_size


def _with_files(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        (target / name).write_text("{}")
    (target / "chat_template.jinja").write_text("the base's")
    for name in ("README.md", "training_args.bin", "modeling_own.py", "optimizer.pt"):
        (target / name).write_text("does not belong")


def test_what_belongs_to_the_model_goes_with_it(shop: Shop, tmp_path: Path) -> None:
    _with_files(shop.base("qwen3"), tmp_path / "base")
    artifact = lora(shop, "qwen3", tmp_path / "adapter")
    own = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("own", tmp_path / "base")
        for name, choice in (
            ("plain", ServingChoice()),
            ("templated", ServingChoice(chat_template=own, system_prompt="Be brief.")),
        ):
            catalog.register(str(artifact), name=name, base="own", serving=choice)
        merge(catalog, "plain", tmp_path / "one")
        report = merge(catalog, "templated", tmp_path / "other").report
    weights = {"config.json", "generation_config.json", "model.safetensors", REPORT}
    beside = {"tokenizer.json", "tokenizer_config.json", "LICENSE", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "one").iterdir()} == weights | beside
    assert (tmp_path / "one" / "chat_template.jinja").read_text() == "the base's"
    assert (tmp_path / "other" / "chat_template.jinja").read_text() == own
    assert any("system prompt" in note for note in report.notes)


def test_files_that_a_fine_tune_has_otherwise(shop: Shop, tmp_path: Path) -> None:
    _with_files(shop.base("qwen3"), tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text('{"version": "1.0"}')
    tune(tmp_path / "base", tmp_path / "tuned", everywhere(0.1))
    (tmp_path / "tuned" / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "tuned" / "tokenizer_config.json").write_text('{"padding_side": "left"}')
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("own", tmp_path / "base")
        catalog.register(str(tmp_path / "tuned"), name="tuned", base="own")
        merge(catalog, "tuned", tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found["tokenizer.json"] == b'{"version": "1.0"}'
    assert found["tokenizer_config.json"] == b'{"padding_side": "left"}'


def test_a_tied_checkpoint_that_has_the_head_as_well(shop: Shop, tmp_path: Path) -> None:
    path = shop.base("llama-tied")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((path / "config.json").read_bytes())
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    tuned = tune(path, tmp_path / "tuned", everywhere(0.1))
    with Catalog.init(tmp_path / "store") as catalog:
        catalog.base_add("own", tmp_path / "base")
        catalog.register(str(tmp_path / "tuned"), name="tuned", base="own")
        merge(catalog, "tuned", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert torch.equal(logits(load(tmp_path / "out")), logits(tuned))


def test_a_quantized_base_is_refused(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = lora(shop, "llama", tmp_path / "adapter")
    shop.register(artifact, "on-quantized", "llama")
    path = shop.base("llama") / "config.json"
    kept = path.read_text()
    config = {**json.loads(kept), "quantization_config": {"quant_method": "bitsandbytes"}}
    path.write_text(json.dumps(config))
    monkeypatch.setattr(
        "quantize.merging.source.digest_of", lambda files: shop.catalog.base("llama").digest
    )
    try:
        with pytest.raises(BaseError, match="original 16-bit weights"):
            merge(shop.catalog, "on-quantized", tmp_path / "out")
    finally:
        path.write_text(kept)


def test_the_header_says_for_which_library(shop: Shop, tmp_path: Path) -> None:
    shop.merged(lora(shop, "llama", tmp_path / "adapter"), "llama", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
