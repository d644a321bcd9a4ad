"""The canonical form: lossless folding, the same bytes every time, and a scale of 1 in vLLM."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.errors import DamagedArtifact, InvalidConfig
from adapters.frozen import Lane
from adapters.intake import hot
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, Manifest
from tests.adapters.intake.artifact_builders import (
    PREFIX,
    Q0_A,
    Q0_B,
    RANK,
    Config,
    Tensors,
    adapter_parts,
    write_good,
    write_parts,
)

Bases = dict[str, tuple[Path, BaseDescriptor]]


def _take(source: Path, base: BaseDescriptor, staging: Path) -> Manifest:
    staging.mkdir(parents=True)
    return take_in(source, base=base, staging=staging, format=None)


def _canonical(
    tmp_path: Path, base: BaseDescriptor, tensors: Tensors, config: Config
) -> tuple[Tensors, Config, Manifest]:
    write_parts(tmp_path / "source", tensors, config)
    manifest = _take(tmp_path / "source", base, tmp_path / "canonical")
    written = load_file(tmp_path / "canonical" / "adapter_model.safetensors")
    read = json.loads((tmp_path / "canonical" / "adapter_config.json").read_text())
    return written, read, manifest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [4, 8, 10, 1, 7.3])
def test_folding_loses_nothing(
    dtype: torch.dtype, alpha: float, llama: BaseDescriptor, tmp_path: Path
) -> None:
    """A as it was; B times alpha/r in fp32 (fp64 for fp64), narrowed only when that is exact."""
    tensors, config = adapter_parts(llama)
    tensors = {name: value.to(dtype) for name, value in tensors.items()}
    written, _, _ = _canonical(tmp_path, llama, tensors, {**config, "lora_alpha": alpha})
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        if ".lora_A." in name:
            assert written[name].dtype is dtype
            assert torch.equal(written[name], value)
            continue
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        product = value.to(wide) * (alpha / RANK)
        assert torch.equal(written[name].to(wide), product)
        exact = torch.equal(product.to(dtype).to(wide), product)
        assert written[name].dtype is (dtype if exact else wide)


def test_powers_of_two_keep_half_precision(llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    tensors = {name: value.to(torch.bfloat16) for name, value in tensors.items()}
    written, _, _ = _canonical(tmp_path, llama, tensors, {**config, "lora_alpha": 16})
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


def test_the_same_artifact_gives_the_same_bytes(llama: BaseDescriptor, tmp_path: Path) -> None:
    """Whatever the order of the source's tensors, its prefix, and how its scale is written."""
    tensors, config = adapter_parts(llama)
    write_parts(tmp_path / "a", tensors, config)
    shuffled = {name.removeprefix(PREFIX): tensors[name] for name in reversed(list(tensors))}
    pattern = {".*": 8}
    write_parts(tmp_path / "b", shuffled, {**config, "lora_alpha": 99, "alpha_pattern": pattern})
    torch.save(tensors, tmp_path / "bin")
    write_parts(tmp_path / "c", tensors, config)
    (tmp_path / "c" / "adapter_model.safetensors").unlink()
    (tmp_path / "bin").rename(tmp_path / "c" / "adapter_model.bin")
    written: list[dict[str, bytes]] = []
    for name in ("a", "b", "c", "a"):
        staging = tmp_path / f"staging-{len(written)}"
        _take(tmp_path / name, llama, staging)
        written.append({path.name: path.read_bytes() for path in staging.iterdir()})
    assert all(item == written[0] for item in written)
    assert set(written[0]) == {"adapter_model.safetensors", "adapter_config.json"}


def test_the_config_has_nothing_of_the_source_in_it(llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    _, written, manifest = _canonical(
        tmp_path, llama, tensors, {**config, "peft_version": "0.19.0", "lora_dropout": 0.1}
    )
    assert written == {
        "alpha_pattern": {},
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    assert manifest.base_by_trainer == "somebody/some-base"
    assert manifest.trainer_version == "PEFT 0.19.0"
    assert manifest.base_digest == llama.digest


def _ranks(tensors: Tensors, rank: int, part: str) -> None:
    for name, value in tensors.items():
        if part in name:
            tensors[name] = value[:rank] if ".lora_A." in name else value[:, :rank]


def test_vllm_reads_a_scale_of_one(llama: BaseDescriptor, tmp_path: Path) -> None:
    """With ranks that differ by module, by vLLM's own code and for every tensor."""
    from vllm.lora.peft_helper import PEFTHelper
    from vllm.lora.utils import parse_fine_tuned_lora_name

    tensors, config = adapter_parts(llama)
    _ranks(tensors, 2, "k_proj")
    _ranks(tensors, 3, "layers.1.self_attn.q_proj")
    config["rank_pattern"] = {"k_proj": 2, "layers.1.self_attn.q_proj": 3}
    written, read, manifest = _canonical(tmp_path, llama, tensors, config)
    assert read["rank_pattern"] == read["alpha_pattern"] != {}
    assert manifest.scale == "per module, 2 to 4"
    helper = PEFTHelper.from_dict(read)
    for name, value in written.items():
        module, is_a = parse_fine_tuned_lora_name(name)
        rank, scale = helper.get_rank_and_scaling(module)
        assert scale == 1.0
        assert rank == value.shape[0 if is_a else 1]


def test_odd_sizes_of_mixed_dtypes_are_aligned(llama: BaseDescriptor, tmp_path: Path) -> None:
    """bf16 A of rank 1 beside fp32 B: nothing that is read may start off its own size."""
    tensors, config = adapter_parts(llama)
    _ranks(tensors, 1, "proj")
    tensors = {name: value.to(torch.bfloat16) for name, value in tensors.items()}
    _canonical(tmp_path, llama, tensors, {**config, "r": 1, "lora_alpha": 0.3})
    path = tmp_path / "canonical" / "adapter_model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"BF16", "F32"}
    for entry in header.values():
        assert entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(header)


@pytest.mark.parametrize("name", ["llama", "llama-bf16", "llama-fp16"])
def test_values_beyond_half_precision_are_refused(name: str, bases: Bases, tmp_path: Path) -> None:
    """Finite, and yet what makes an engine overflow; alpha/r is 2 here, so half is allowed."""
    base = bases[name][1]
    for value, fits in ((32_000.0, True), (-33_000.0, False), (3.4e38, False)):
        tensors, config = adapter_parts(base)
        tensors[Q0_B][0, 0] = value
        write_parts(tmp_path / str(value), tensors, config)
        staging = tmp_path / f"{value}-staging"
        if fits:
            _take(tmp_path / str(value), base, staging)
            continue
        with pytest.raises(DamagedArtifact, match="1 value beyond ±65504"):
            _take(tmp_path / str(value), base, staging)


def test_updates_below_fp16_are_no_effect(bases: Bases, tmp_path: Path) -> None:
    base = bases["llama-fp16"][1]
    tensors, config = adapter_parts(base)
    tensors = {n: v * (1e-9 if ".lora_B." in n else 1) for n, v in tensors.items()}
    write_parts(tmp_path / "source", tensors, config)
    with pytest.raises(DamagedArtifact, match="too small for the base's dtype"):
        _take(tmp_path / "source", base, tmp_path / "staging")


def test_single_dead_pairs_are_noted(llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    tensors[Q0_B] = torch.zeros_like(tensors[Q0_B])
    _, _, manifest = _canonical(tmp_path, llama, tensors, config)
    assert manifest.notes[-1].startswith("1 of 12 pairs have no effect")
    assert "layers.0.self_attn.q_proj" in manifest.notes[-1]


def test_safetensors_win_over_the_pickle_beside_them(llama: BaseDescriptor, tmp_path: Path) -> None:
    write_good(tmp_path / "source", llama)
    (tmp_path / "source" / "adapter_model.bin").write_bytes(b"not even a pickle")
    manifest = _take(tmp_path / "source", llama, tmp_path / "staging")
    assert any("adapter_model.bin beside it was not" in note for note in manifest.notes)


def test_embedding_on_an_architecture_without_it(bases: Bases, tmp_path: Path) -> None:
    base = bases["gpt2"][1]
    spec = next(item for item in base.modules if item.name == "transformer.wte")
    tensors = {
        f"{PREFIX}{spec.name}.lora_embedding_A": torch.ones(RANK, spec.in_features),
        f"{PREFIX}{spec.name}.lora_embedding_B": torch.ones(spec.out_features, RANK),
    }
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["wte"]}
    write_parts(tmp_path / "source", tensors, config)
    manifest = _take(tmp_path / "source", base, tmp_path / "staging")
    assert manifest.lane is Lane.MERGED
    assert "vLLM takes no LoRA on 'transformer" in manifest.reasons[0]


def test_a_linear_pair_for_an_embedding(llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    tensors[f"{PREFIX}model.embed_tokens.lora_A.weight"] = torch.ones(RANK, 96)
    tensors[f"{PREFIX}model.embed_tokens.lora_B.weight"] = torch.ones(32, RANK)
    config["target_modules"].append("embed_tokens")
    write_parts(tmp_path / "source", tensors, config)
    problems = examine(tmp_path / "source", bases=[("b", llama)], format=None).problems
    assert any("whose LoRA factors are named lora_embedding_A/B" in text for text in problems)


def test_progress_ends_at_the_total(llama: BaseDescriptor, tmp_path: Path) -> None:
    write_good(tmp_path / "source", llama)
    (tmp_path / "staging").mkdir()
    seen: list[tuple[int, int]] = []
    take_in(
        tmp_path / "source",
        base=llama,
        staging=tmp_path / "staging",
        format="peft",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert len({total for _, total in seen}) == 1


@pytest.mark.parametrize("held", [True, False])
def test_a_source_that_changes_while_it_is_read(
    held: bool, llama: BaseDescriptor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was put there after the proof is never written: held in memory, or read and proved."""
    if not held:
        monkeypatch.setattr(hot, "HOLD_BYTES", 0)
    write_good(tmp_path / "source", llama)
    (tmp_path / "staging").mkdir()
    path = tmp_path / "source" / "adapter_model.safetensors"
    changed = load_file(path)
    changed[Q0_A][0, 0] = float("nan")

    def spoil(done: int, total: int) -> None:
        if done == total // 2:
            save_file(changed, path, metadata={"format": "pt"})

    with nullcontext() if held else pytest.raises(DamagedArtifact, match="NaN"):
        take_in(
            tmp_path / "source",
            base=llama,
            staging=tmp_path / "staging",
            format=None,
            progress=spoil,
        )
    if held:
        written = load_file(tmp_path / "staging" / "adapter_model.safetensors")
        assert torch.equal(written[Q0_A], adapter_parts(llama)[0][Q0_A])


def test_examine_picks_the_base_that_fits(bases: Bases, tmp_path: Path) -> None:
    write_good(tmp_path / "source", bases["llama"][1])
    named: list[tuple[str, BaseDescriptor]] = [(n, d) for n, (_, d) in bases.items()]
    found = examine(tmp_path / "source", bases=named, format=None)
    assert found.base == "llama"
    assert not found.problems
    assert any("llama-tied" in reason for reason in found.reasons)
    none: list[tuple[str, Any]] = []
    assert "no base to check" in examine(tmp_path / "source", bases=none, format=None).problems[0]
    other = [("gpt2", bases["gpt2"][1])]
    assert "does not have" in examine(tmp_path / "source", bases=other, format=None).problems[0]


def test_the_trainer_s_base_decides_between_equals(bases: Bases, tmp_path: Path) -> None:
    tensors, config = adapter_parts(bases["llama"][1])
    config["base_model_name_or_path"] = "/models/LLAMA-tied/"
    write_parts(tmp_path / "source", tensors, config)
    named = [(n, bases[n][1]) for n in ("llama", "llama-tied")]
    assert examine(tmp_path / "source", bases=named, format=None).base == "llama-tied"


def test_config_kinds_that_no_json_should_have(llama: BaseDescriptor, tmp_path: Path) -> None:
    for number, (key, value) in enumerate(
        [("task_type", ["x"]), ("peft_type", {"a": 1}), ("use_rslora", "yes"), ("r", "4"),
         ("rank_pattern", [1]), ("layers_to_transform", "all"), ("exclude_modules", 3),
         ("init_lora_weights", 17), ("fan_in_fan_out", 1)]
    ):  # fmt: skip
        tensors, config = adapter_parts(llama)
        write_parts(tmp_path / str(number), tensors, {**config, key: value})
        problems = examine(tmp_path / str(number), bases=[("b", llama)], format=None).problems
        assert problems, (key, value)
        assert key in problems[0]


def test_layers_pattern_is_followed(llama: BaseDescriptor, tmp_path: Path) -> None:
    tensors, config = adapter_parts(llama)
    kept = {name: value for name, value in tensors.items() if ".layers.1." in name}
    config |= {"layers_to_transform": [1], "layers_pattern": "layers"}
    write_parts(tmp_path / "right", kept, config)
    assert not examine(tmp_path / "right", bases=[("b", llama)], format=None).problems
    write_parts(tmp_path / "wrong", tensors, config)
    problems = examine(tmp_path / "wrong", bases=[("b", llama)], format=None).problems
    assert "does not cover" in problems[0]


def test_an_unknown_format_is_named(llama: BaseDescriptor, tmp_path: Path) -> None:
    write_good(tmp_path / "source", llama)
    found = examine(tmp_path / "source", bases=[("b", llama)], format="magic")
    assert "'magic' is no supported format; supported: peft" in found.problems[0]


def test_biases_that_the_base_has_not_are_none_to_train(
    llama: BaseDescriptor, bases: Bases, tmp_path: Path
) -> None:
    """bias = all leaves a Llama's adapter plain LoRA; on GPT-2 the biases must be in the file."""
    tensors, config = adapter_parts(llama)
    write_parts(tmp_path / "llama", tensors, {**config, "bias": "all"})
    assert _take(tmp_path / "llama", llama, tmp_path / "taken").lane is Lane.HOT
    gpt2 = bases["gpt2"][1]
    spec = next(item for item in gpt2.modules if item.name.endswith("h.0.attn.c_attn"))
    pair = {
        f"{PREFIX}{spec.name}.lora_A.weight": torch.ones(RANK, spec.in_features),
        f"{PREFIX}{spec.name}.lora_B.weight": torch.ones(spec.out_features, RANK),
    }
    targets = {"target_modules": [spec.name.removeprefix("transformer.")]}
    write_parts(tmp_path / "gpt2", pair, {**config, **targets, "bias": "lora_only"})
    with pytest.raises(DamagedArtifact, match=r"bias = 'lora_only', but '.*c_attn\.bias' is not"):
        _take(tmp_path / "gpt2", gpt2, tmp_path / "one")
    write_parts(tmp_path / "odd", pair, {**config, **targets, "bias": "some"})
    with pytest.raises(InvalidConfig, match="bias is 'some'"):
        _take(tmp_path / "odd", gpt2, tmp_path / "two")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tied_pair_of_embeddings_with_one_adapter_is_hot(bases: Bases, tmp_path: Path) -> None:
    """ensure_weight_tying: PEFT saves tensors for both ends and targets one."""
    path, base = bases["llama-tied"]
    model = AutoModelForCausalLM.from_pretrained(path)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True, lora_alpha=6
    )
    tuned = get_peft_model(model, config)
    torch.manual_seed(3)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    manifest = _take(tmp_path / "adapter", base, tmp_path / "staging")
    assert (manifest.lane, manifest.targets) == (Lane.HOT, ("embed_tokens", "lm_head", "q_proj"))
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        original = tuned.eval()(tokens).logits
        plain = AutoModelForCausalLM.from_pretrained(path)
        canonical = PeftModel.from_pretrained(plain, tmp_path / "staging")(tokens).logits
    assert (canonical - original).abs().max().item() < 1e-5
