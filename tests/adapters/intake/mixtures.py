"""Tiny random mixtures of experts on disk, and PEFT adapters for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from adapters.intake.merging import Edit
from adapters.models import BaseDescriptor, ExpertsSpec

VOCABULARY = 64
EXPERTS = 4
RANK = 3
_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _qwen3() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_COMMON, head_dim=16, moe_intermediate_size=20, num_experts=EXPERTS)
    )


def _qwen2() -> PreTrainedModel:
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            **_COMMON,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=28,
            num_experts=EXPERTS,
        )
    )


def _deepseek() -> PreTrainedModel:
    """With a layer that is no mixture."""
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **{**_COMMON, "num_key_value_heads": 4},
            moe_intermediate_size=20,
            n_routed_experts=EXPERTS,
            n_shared_experts=1,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=8,
        )
    )


MIXTURES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "qwen3-moe": _qwen3,
    "qwen2-moe": _qwen2,
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_COMMON, num_local_experts=EXPERTS)),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**_COMMON, num_experts=EXPERTS)),
    "deepseek-v3": _deepseek,
}


def write_mixture(path: Path, name: str, *, fused: bool = False) -> Path:
    """The model, its matrices random and large enough that routing matters; returns `path`."""
    torch.manual_seed(3)
    model = MIXTURES[name]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(path, save_original_format=not fused)
    return path


def load_mixture(path: Path) -> Any:
    # fp64: what is left of a difference is the one fp32 rounding of scale·B.
    # The grouped product, which is the default for experts, has no fp64.
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, experts_implementation="eager"
    ).eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 16).reshape(2, 16) * 7 % VOCABULARY
    with torch.inference_mode():
        found = model(tokens).logits
    assert isinstance(found, torch.Tensor)
    return found


def train(base: Path, folder: Path, **config: Any) -> torch.Tensor:
    """A PEFT adapter with random factors, saved by PEFT; returns its logits."""
    chosen = {"r": RANK, "lora_alpha": 5, "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(load_mixture(base), LoraConfig(**chosen)).eval()
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.25)
            # What is saved is fp32, so what is compared must be.
            parameter.data = parameter.data.float().double()
    answer = logits(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    model.save_pretrained(folder)
    return answer


def by_peft(base: Path, folder: Path) -> torch.Tensor:
    """The logits of the adapter in `folder` as PEFT loads it."""
    return logits(PeftModel.from_pretrained(load_mixture(base), folder).eval())


def write_matrices(folder: Path, base: BaseDescriptor, **config: Any) -> None:
    """An adapter as PEFT wrote it with transformers 4: a matrix for each expert, and attention."""
    generator = torch.Generator().manual_seed(5)
    drawn = partial(torch.randn, generator=generator)
    tensors: dict[str, torch.Tensor] = {}
    sizes = {
        f"{spec.stored}.{expert}.{leaf}": (inputs, outputs)
        for spec in base.experts
        for expert in range(spec.count)
        for leaf, inputs, outputs in _sides(spec)
    }
    sizes |= {
        spec.name: (spec.in_features, spec.out_features)
        for spec in base.modules
        if spec.name.endswith("self_attn.o_proj")
    }
    for name, (inputs, outputs) in sizes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = drawn(RANK, inputs) * 0.25
        tensors[f"base_model.model.{name}.lora_B.weight"] = drawn(outputs, RANK) * 0.25
    layer = base.experts[0]
    write_adapter(
        folder,
        tensors,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": 5,
            "target_modules": ["o_proj", layer.gate, layer.up, layer.down],
            **config,
        },
    )


def _sides(spec: ExpertsSpec) -> tuple[tuple[str, int, int], ...]:
    return (
        (spec.gate, spec.hidden, spec.inner),
        (spec.up, spec.hidden, spec.inner),
        (spec.down, spec.inner, spec.hidden),
    )


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value.clone().contiguous() for name, value in tensors.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))


def parts_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), config


def merged(base: Path, edits: tuple[Edit, ...], target: Path) -> Any:
    """The base with `edits` carried out on its checkpoint in fp64."""
    old_weights = load_file(base / "model.safetensors")
    weights = {name: value.double() for name, value in old_weights.items()}
    for edit in edits:
        assert edit.reads == edit.parameter
        old = weights[edit.parameter]
        assert tuple(old.shape) == edit.shape
        inputs = [tensor.load() for tensor in edit.inputs]
        assert [tuple(v.shape) for v in inputs] == [tensor.shape for tensor in edit.inputs]
        weights[edit.parameter] = edit.apply(old, *(value.double() for value in inputs))
        assert weights[edit.parameter].shape == old.shape
    target.mkdir()
    (target / "config.json").write_text((base / "config.json").read_text())
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return load_mixture(target)
