"""base + canonical adapter answers as base + original adapter does in PEFT, to fp32 rounding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from adapters.frozen import Lane
from adapters.intake.pipeline import examine, take_in
from adapters.models import BaseDescriptor, Manifest
from tests.adapters.intake.conftest import VOCABULARY

Bases = dict[str, tuple[Path, BaseDescriptor]]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Kind:
    """An accepted kind: the base, PEFT's config, how it is saved, and what is done to the files."""

    base: str
    config: dict[str, Any]
    safetensors: bool = True
    dtype: torch.dtype = torch.float32
    alter: Callable[[Path], None] = field(default=lambda folder: None)


def _rename_keys(change: Callable[[str], str]) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "adapter_model.safetensors"
        save_file({change(name): value for name, value in load_file(path).items()}, path)

    return alter


def _into_subdirectory(folder: Path) -> None:
    inner = folder / "french"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file():
            path.rename(inner / path.name)


KINDS: dict[str, Kind] = {
    "plain": Kind("llama", {"target_modules": ATTENTION}),
    "tied": Kind("llama-tied", {"target_modules": ALL}),
    "qwen3": Kind("qwen3", {"target_modules": ALL}),
    "alpha-below-rank": Kind("llama", {"target_modules": ALL, "r": 12, "lora_alpha": 5}),
    "rslora": Kind("llama", {"target_modules": ATTENTION, "use_rslora": True, "r": 6}),
    "bin": Kind("llama", {"target_modules": ATTENTION}, safetensors=False),
    "bf16-factors": Kind("llama", {"target_modules": ATTENTION}, dtype=torch.bfloat16),
    "fp16-factors": Kind("llama", {"target_modules": ATTENTION}, dtype=torch.float16),
    "all-linear": Kind("llama", {"target_modules": "all-linear"}),
    "regex": Kind("llama", {"target_modules": r"model\.layers\.[02]\..*(q|down)_proj"}),
    "layers-to-transform": Kind("llama", {"target_modules": ALL, "layers_to_transform": [1]}),
    "exclude-modules": Kind("llama", {"target_modules": ALL, "exclude_modules": ["v_proj"]}),
    "rank-pattern": Kind(
        "llama",
        {
            "target_modules": ALL,
            "rank_pattern": {
                "layers.1.self_attn.q_proj": 9,
                "down_proj": 2,
                r"layers\.0\.mlp\..*": 3,
            },
        },
    ),
    "alpha-pattern": Kind(
        "qwen3", {"target_modules": ALL, "alpha_pattern": {r"layers\.0\..*_proj": 3, "o_proj": 40}}
    ),
    "both-patterns-rslora": Kind(
        "llama",
        {
            "target_modules": ALL,
            "use_rslora": True,
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"k_proj": 7, "up_proj": 0.5},
        },
    ),
    "gpt2-conv1d": Kind("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2-without-the-flag": Kind("gpt2", {"target_modules": ["c_attn", "c_fc"]}),
    "flag-on-linear-layers": Kind("llama", {"target_modules": ATTENTION, "fan_in_fan_out": True}),
    "embedding": Kind("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "output-head": Kind("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "embedding-tied": Kind("llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    "output-head-tied": Kind("llama-tied", {"target_modules": ["q_proj", "lm_head"]}),
    "both-ends-tied": Kind("llama-tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tying": Kind(
        "llama-tied",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "tying-by-the-head": Kind(
        "llama-tied",
        {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True, "use_rslora": True},
    ),
    "tying-of-untied": Kind(
        "llama", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    ),
    "both-ends-qwen3": Kind("qwen3", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "eva-trained": Kind("llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    "no-prefix": Kind(
        "llama",
        {"target_modules": ATTENTION},
        alter=_rename_keys(lambda name: name.removeprefix("base_model.model.")),
    ),
    "default-infix": Kind(
        "llama",
        {"target_modules": ATTENTION},
        alter=_rename_keys(lambda name: name.replace(".weight", ".default.weight")),
    ),
    "subdirectory": Kind("llama", {"target_modules": ATTENTION}, alter=_into_subdirectory),
}


def _base_model(path: Path) -> Any:
    # fp64, so that what is left of a difference is the one fp32 rounding of scale·B.
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


def _logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 24).reshape(2, 24) * 7 % VOCABULARY
    with torch.inference_mode():
        logits = model(tokens).logits
    assert isinstance(logits, torch.Tensor)
    return logits


def _train(kind: Kind, path: Path, folder: Path) -> torch.Tensor:
    """A real PEFT adapter with random A and B, saved by PEFT; what the trained model answers."""
    config = {"r": 4, "lora_alpha": 10, "task_type": "CAUSAL_LM", **kind.config}
    model = get_peft_model(_base_model(path), LoraConfig(**config))
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
            parameter.data = parameter.data.to(kind.dtype)
    model.save_pretrained(folder, safe_serialization=kind.safetensors)
    return _logits(model.eval().double())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_canonical_form_answers_as_peft(name: str, bases: Bases, tmp_path: Path) -> None:
    kind = KINDS[name]
    path, descriptor = bases[kind.base]
    trained = _train(kind, path, tmp_path / "adapter")
    before = _logits(_base_model(path))
    original = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "adapter"))
    if kind.config.get("ensure_weight_tying"):
        # Where no cast parts the two ends, loading makes them one again: see tying.py.
        original = trained
    kind.alter(tmp_path / "adapter")

    found = examine(tmp_path / "adapter", bases=[(kind.base, descriptor)], format=None)
    assert (found.problems, found.lane) == ((), Lane.HOT)
    manifest = _taken(tmp_path, descriptor)
    canonical = _logits(PeftModel.from_pretrained(_base_model(path), tmp_path / "canonical"))

    effect = (original - before).abs().max().item()
    error = (canonical - original).abs().max().item()
    assert effect > 1e-2, "the adapter must be strong enough for the comparison to mean anything"
    assert error <= 3e-6 * max(1.0, original.abs().max().item())
    assert manifest.rank == found.rank


def _taken(tmp_path: Path, base: BaseDescriptor) -> Manifest:
    shutil.rmtree(tmp_path / "canonical", ignore_errors=True)
    (tmp_path / "canonical").mkdir()
    return take_in(tmp_path / "adapter", base=base, staging=tmp_path / "canonical", format=None)
