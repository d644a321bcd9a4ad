"""An adapter of finite weights that overflows for one token of the vocabulary, and for no other."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK = 16
# The largest magnitude that registration takes, in bfloat16.
LARGEST = 65024.0
LAYER = "model.layers.0"


def write_overflowing_adapter(target: Path, base: Path, token: int) -> None:
    """A PEFT LoRA of rank 16 for a Llama `base` whose first MLP makes infinity of `token`.

    The embedding's part points that token alone in one direction of signs. Gate and up answer
    to the direction, each 1e12 high, so down has products beyond bfloat16's 3.4e38. Any other
    token lies across it: a twelfth as long in it, a hundredth after gate times up, and finite.
    """
    with safe_open(base / "model.safetensors", framework="pt") as weights:
        norm = weights.get_tensor(f"{LAYER}.post_attention_layernorm.weight").float()
        vocabulary = weights.get_slice("model.embed_tokens.weight").get_shape()[0]
        inner = weights.get_slice(f"{LAYER}.mlp.gate_proj.weight").get_shape()[0]
    size = len(norm)
    signs = torch.randn(size, generator=torch.Generator().manual_seed(0)).sign()
    along = (signs * norm.sign() * LARGEST).repeat(RANK, 1)
    embedding_a, embedding_b = torch.zeros(RANK, vocabulary), torch.zeros(size, RANK)
    embedding_a[0, token], embedding_b[:, 0] = LARGEST, signs
    full = {
        f"{LAYER}.mlp.gate_proj": (along, torch.full((inner, RANK), LARGEST)),
        f"{LAYER}.mlp.up_proj": (along, torch.full((inner, RANK), LARGEST)),
        f"{LAYER}.mlp.down_proj": (
            torch.full((RANK, inner), LARGEST),
            torch.full((size, RANK), LARGEST),
        ),
    }
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": embedding_a,
        "base_model.model.model.embed_tokens.lora_embedding_B": embedding_b,
    }
    for module, (a, b) in full.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.clone()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    target.mkdir(parents=True)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["model.embed_tokens", *full],
        "bias": "none",
    }
    (target / "adapter_config.json").write_text(json.dumps(config))
