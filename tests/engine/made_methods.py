"""Artifacts of many methods and formats on the real base, with the model that is right about each.

PEFT makes them with random values, strong enough to change every answer and weak enough to leave
a distribution that is far from flat. MLX, LitGPT and GGUF files hold PEFT's LoRA in the layout that
tests/adapters/intake proves against the trainers' own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import (
    AdaLoraConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters.intake import gguf_builder

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
RANK = 8
ALPHA = 16
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Made:
    """A way to make an artifact: PEFT's config, the spread of its values, the file's format.

    `spread` by a part of a parameter's name; `rank` is that of the plain LoRA it becomes.
    """

    config: Any
    spread: Mapping[str, float]
    rank: int
    export: Callable[[PeftModel, Path], None] = field(
        default=lambda model, folder: model.save_pretrained(folder)
    )


def make(made: Made, base: Path, folder: Path, *, seed: int) -> PeftModel:
    """Write the artifact into `folder`; returns the model it belongs to, in fp32."""
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), made.config
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for part, spread in made.spread.items():
                if part in name:
                    # Onto what an initialisation computed; most begin with a zero.
                    parameter.add_(torch.randn_like(parameter) * spread)
    folder.mkdir()
    made.export(model, folder)
    return model.eval()


def factors_of(model: PeftModel, folder: Path) -> Factors:
    """PEFT's factors by module."""
    model.save_pretrained(folder / "peft")
    found = load_file(folder / "peft" / "adapter_model.safetensors")
    for file in (folder / "peft").iterdir():
        file.unlink()
    (folder / "peft").rmdir()
    plain = {name.removeprefix("base_model.model."): value for name, value in found.items()}
    return {
        name.removesuffix(".lora_A.weight"): (value, plain[name.replace("lora_A", "lora_B")])
        for name, value in plain.items()
        if name.endswith(".lora_A.weight")
    }


def as_mlx(model: PeftModel, folder: Path) -> None:
    """mlx-lm: both factors turned, `scale` in place of alpha over rank."""
    named = {}
    for module, (a, b) in factors_of(model, folder).items():
        named[f"{module}.lora_a"] = a.T.contiguous()
        named[f"{module}.lora_b"] = b.T.contiguous()
    save_file(named, folder / "adapters.safetensors")
    keys = sorted({".".join(module.split(".")[3:]) for module in factors_names(named)})
    config = {
        "fine_tune_type": "lora",
        "model": "SmolLM2-135M-Instruct",
        "num_layers": -1,
        "lora_parameters": {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0, "keys": keys},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def factors_names(named: Mapping[str, Any]) -> set[str]:
    """The modules of MLX's names."""
    return {name.rpartition(".")[0] for name in named}


def as_litgpt(model: PeftModel, folder: Path) -> None:
    """LitGPT: q, k and v as one layer, its lora_A the three below each other."""
    factors = factors_of(model, folder)
    config = model.config
    state: dict[str, torch.Tensor] = {}
    for layer in range(config.num_hidden_layers):
        parts = [factors[f"model.layers.{layer}.self_attn.{leaf}_proj"] for leaf in "qkv"]
        place = f"transformer.h.{layer}.attn"
        state[f"{place}.qkv.lora_A"] = torch.cat([a for a, _ in parts])
        state[f"{place}.qkv.lora_B"] = torch.cat([b for _, b in parts])
        a, b = factors[f"model.layers.{layer}.self_attn.o_proj"]
        state[f"{place}.proj.lora_A"], state[f"{place}.proj.lora_B"] = a, b
    torch.save({"model": state}, folder / "lit_model.pth.lora")
    settings = {"lora_r": RANK, "lora_alpha": ALPHA, "checkpoint_dir": "SmolLM2-135M-Instruct"}
    settings |= {f"lora_{part}": True for part in ("query", "key", "value", "projection")}
    settings |= {"lora_mlp": False, "lora_head": False}
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))
    sizes = {
        "n_head": config.num_attention_heads,
        "n_query_groups": config.num_key_value_heads,
        "n_embd": config.hidden_size,
        "head_size": config.hidden_size // config.num_attention_heads,
    }
    (folder / "model_config.yaml").write_text(yaml.safe_dump(sizes))


def as_gguf(model: PeftModel, folder: Path) -> None:
    """llama.cpp: rows of q and k in its own order."""
    factors = factors_of(model, folder)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    gguf_builder.write_gguf(folder / "adapter.gguf", factors, alpha=ALPHA, heads=heads)


def _lora(targets: list[str], **more: Any) -> LoraConfig:
    values = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**values, **more})


FACTORS = {"lora_A": 0.065, "lora_B": 0.065}
MADE: dict[str, Made] = {
    "lora": Made(_lora(ALL), FACTORS, RANK),
    "rslora": Made(_lora(ALL, use_rslora=True), {"lora_A": 0.04, "lora_B": 0.04}, RANK),
    "loha": Made(
        LoHaConfig(r=4, alpha=8, target_modules=ATTENTION, task_type="CAUSAL_LM"),
        {"hada_": 0.2},
        16,
    ),
    "lokr": Made(
        LoKrConfig(
            r=4, alpha=8, target_modules=ATTENTION, decompose_factor=2, task_type="CAUSAL_LM"
        ),
        {"lokr_w1": 0.4, "lokr_w2": 0.1},
        8,
    ),
    "vera": Made(
        VeraConfig(r=16, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM"),
        {"vera_lambda_": 1.0},
        16,
    ),
    "adalora": Made(
        AdaLoraConfig(
            init_r=RANK, lora_alpha=ALPHA, target_modules=ALL, total_step=10, task_type="CAUSAL_LM"
        ),
        {**FACTORS, "lora_E": 2.0},
        RANK,
    ),
    "pissa": Made(
        _lora(["q_proj", "v_proj"], init_lora_weights="pissa"),
        {"lora_A": 0.05, "lora_B": 0.05},
        2 * RANK,
    ),
    "mlx": Made(_lora(ALL), FACTORS, RANK, as_mlx),
    "litgpt": Made(_lora(ATTENTION), {"lora_A": 0.09, "lora_B": 0.09}, RANK, as_litgpt),
    "gguf": Made(_lora(ALL), FACTORS, RANK, as_gguf),
}
