"""Tinker's and kohya's names: the same adapter as PEFT's own files, and names that are not guessed.

Tinker is a service and kohya's scripts train image models, so the files are written by the rules
of their sources; LyCORIS's are real (test_trainers.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.errors import AmbiguousFormat, BaseMismatch
from adapters.frozen import Lane
from adapters.intake.kohya import _unflattened
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, ModuleSpec
from tests.adapters.intake.artifact_builders import PREFIX, WEIGHTS, write_good
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _base_model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    model.double()
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _save_peft(path: Path, folder: Path, **values: Any) -> dict[str, torch.Tensor]:
    """A random adapter on `path`, saved by PEFT; returns its tensors."""
    config = LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **values)
    model = get_peft_model(_base_model(path), config)
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder, save_embedding_layers=False)
    return load_file(folder / WEIGHTS)


def _same_logits(path: Path, base: BaseDescriptor, peft: Path, source: Path, out: Path) -> None:
    before = _logits(_base_model(path))
    wanted = _logits(PeftModel.from_pretrained(_base_model(path), peft))
    out.mkdir()
    take_in(source, base=base, staging=out, format=None)
    found = _logits(PeftModel.from_pretrained(_base_model(path), out))
    assert (wanted - before).abs().max().item() > 1e-2
    assert (found - wanted).abs().max().item() <= 1e-6


@pytest.mark.parametrize("base", ["llama", "llama-tied", "qwen3"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tinkers_names_answer_as_peft(base: str, bases: Bases, tmp_path: Path) -> None:
    """Its head is `model.unembed_tokens`, which leaves the input embedding alone if tied too."""
    path, descriptor = bases[base]
    tensors = _save_peft(path, tmp_path / "peft", target_modules=[*ALL, "lm_head"])
    source = tmp_path / "tinker"
    source.mkdir()
    named = {k.replace(".lm_head.", ".model.unembed_tokens."): v for k, v in tensors.items()}
    assert named.keys() != tensors.keys()
    save_file(named, source / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 10, "target_modules": "all-linear"}
    (source / "adapter_config.json").write_text(json.dumps(settings))
    found = examine(source, bases=[("tiny", descriptor)], format=None)
    assert (found.problems, found.format, found.method) == ((), "tinker", "lora")
    assert (found.lane, found.trainer) == (Lane.HOT, "Tinker")
    _same_logits(path, descriptor, tmp_path / "peft", source, tmp_path / "out")


def test_tinkers_barest_config_is_enough(bases: Bases, tmp_path: Path) -> None:
    path, descriptor = bases["llama"]
    _save_peft(path, tmp_path / "peft", target_modules=["q_proj"])
    _save_peft(path, tmp_path / "tinker", target_modules=["q_proj"])
    settings = json.dumps({"r": 4, "lora_alpha": 10})
    (tmp_path / "tinker" / "adapter_config.json").write_text(settings)
    found = examine(tmp_path / "tinker", bases=[("tiny", descriptor)], format=None)
    assert (found.problems, found.format) == ((), "tinker")
    _same_logits(path, descriptor, tmp_path / "peft", tmp_path / "tinker", tmp_path / "out")


def test_tinkers_names_in_a_multimodal_base(llama: BaseDescriptor, tmp_path: Path) -> None:
    """There the language model lies deeper; the modules are only renamed."""
    modules = tuple(
        spec.model_copy(update={"name": spec.name.replace("model.", "model.language_model.", 1)})
        for spec in llama.modules
    )
    nested = llama.model_copy(update={"modules": modules})
    spec = next(spec for spec in modules if spec.name.endswith("q_proj"))
    stem = f"{PREFIX}{spec.name.replace('language_model.', '')}"
    tmp_path.joinpath("out").mkdir()
    save_file(
        {
            f"{stem}.lora_A.weight": torch.ones(2, spec.in_features),
            f"{stem}.lora_B.weight": torch.ones(spec.out_features, 2),
        },
        tmp_path / WEIGHTS,
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    take_in(tmp_path, base=nested, staging=tmp_path / "out", format=None)
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert set(stored) == {f"{PREFIX}{spec.name}.lora_{side}.weight" for side in "AB"}


@pytest.mark.parametrize("prefix", ["lora", "lora_te", "lora_te1", "lycoris"])
@pytest.mark.parametrize("alpha", [10.0, 0.0, None])
def test_kohyas_names_answer_as_peft(
    prefix: str, alpha: float | None, bases: Bases, tmp_path: Path
) -> None:
    """Without an alpha, or with 0, the factor is 1: the rank divided by itself."""
    path, descriptor = bases["qwen3"]
    tensors = _save_peft(path, tmp_path / "peft", target_modules=ALL)
    if not alpha:
        config = tmp_path / "peft" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 4}))
    named: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        module, _, side = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
        stem = f"{prefix}_{module.replace('.', '_')}"
        named[f"{stem}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
        if alpha is not None:
            named[f"{stem}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
    (tmp_path / "kohya").mkdir()
    source = tmp_path / "kohya" / "anything.safetensors"
    save_file(named, source)
    _same_logits(path, descriptor, tmp_path / "peft", source, tmp_path / "out")


def test_flattened_names_that_stand_for_two_modules_are_refused(
    llama: BaseDescriptor, tmp_path: Path
) -> None:
    first = next(spec for spec in llama.modules if spec.name.endswith("0.self_attn.q_proj"))
    twin = ModuleSpec(
        name=first.name.replace("self_attn.q_proj", "self.attn_q.proj"),
        kind="linear",
        in_features=first.in_features,
        out_features=first.out_features,
    )
    base = llama.model_copy(update={"modules": (*llama.modules, twin)})
    stem = f"lora_{first.name.replace('.', '_')}"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, first.in_features),
            f"{stem}.lora_up.weight": torch.ones(first.out_features, 2),
        },
        tmp_path / "x.safetensors",
    )
    with pytest.raises(BaseMismatch, match="do not tell them apart"):
        take_in(tmp_path, base=base, staging=tmp_path, format=None)


names = st.lists(st.sampled_from(["model", "layers", "0", "a", "a_b", "te", "b"]), min_size=1)


@given(modules=st.sets(names.map(".".join), min_size=1, max_size=8), which=st.integers(0, 7))
def test_a_flattened_name_finds_its_module_or_says_why_not(modules: set[str], which: int) -> None:
    """Whatever a base's modules are called: the right one, or a refusal; never another one."""
    flattened: dict[str, list[str]] = {}
    for name in sorted(modules):
        flattened.setdefault(name.replace(".", "_"), []).append(name)
    meant = sorted(modules)[which % len(modules)]
    try:
        found = _unflattened(f"lora_{meant.replace('.', '_')}", flattened)
    except BaseMismatch:
        return
    assert found == meant


def test_the_same_directory_by_two_formats(llama: BaseDescriptor, tmp_path: Path) -> None:
    """--format decides where the files alone do not."""
    inner = _two_formats(tmp_path, llama)
    with pytest.raises(AmbiguousFormat, match="gguf or kohya"):
        take_in(tmp_path, base=llama, staging=inner, format=None)
    assert take_in(tmp_path, base=llama, staging=inner, format="kohya").format == "kohya"


def _two_formats(folder: Path, base: BaseDescriptor) -> Path:
    """A kohya file and a GGUF file in one directory; returns a staging directory."""
    spec = next(spec for spec in base.modules if spec.name.endswith("q_proj"))
    stem = f"lora_{spec.name.replace('.', '_')}"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.ones(2, spec.in_features),
            f"{stem}.lora_up.weight": torch.ones(spec.out_features, 2),
        },
        folder / "x.safetensors",
    )
    (folder / "x.gguf").touch()
    (folder / "staging").mkdir()
    return folder / "staging"


def test_a_directorys_own_adapter_comes_before_those_in_it(
    llama: BaseDescriptor, tmp_path: Path
) -> None:
    staging = _two_formats(tmp_path, llama)
    (tmp_path / "x.gguf").unlink()
    write_good(tmp_path / "checkpoint-1", llama)
    assert take_in(tmp_path, base=llama, staging=staging, format=None).format == "kohya"
