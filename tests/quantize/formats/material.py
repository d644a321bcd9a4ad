"""Numbers that look like weights and are the same everywhere: integers, no generator of torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 48


def values(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Nearly normal, deviation about 0.05: sums of four 16-bit numbers, exact in fp32."""
    index = torch.arange(math.prod(shape), dtype=torch.int64)
    total = torch.zeros_like(index)
    for part in range(4):
        mixed = (index * 2654435761 + (seed * 4 + part + 1) * 40503) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 13)) * 3266489917) & 0xFFFFFFFF
        total += (mixed ^ (mixed >> 16)) & 0xFFFF
    return ((total - 131070).to(torch.float32) / 2**20).reshape(shape).to(dtype)


def llama(folder: Path, dtype: torch.dtype) -> None:
    """A Llama of two layers; its weights are exact in bf16, so `dtype` changes no value.

    Widths are whole blocks of 64, or no multiple of 16: for all others the AVX-512 kernel of
    bitsandbytes 0.50.2 reads a weight with the scales of other blocks, and would be no oracle.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        found = 2 * values(tuple(parameter.shape), seed, torch.bfloat16)
        parameter.data = (found + 1 if name.endswith("norm.weight") else found).to(torch.bfloat16)
    model.to(dtype).save_pretrained(folder)


def tokens() -> torch.Tensor:
    return torch.arange(2 * 16).reshape(2, 16) * 7 % VOCABULARY


def trained(model: Any) -> None:
    """Puts numbers into every LoRA factor of a PEFT model: about a tenth of the weights' size."""
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_" in name:
            parameter.data = values(tuple(parameter.shape), 1000 + seed, torch.float32)
