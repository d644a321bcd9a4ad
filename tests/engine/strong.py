"""Adapters whose output nobody can mistake for another's or the base's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.models import BaseDescriptor

RANK = 8
LAYERS = 12


def write_strong_adapter(target: Path, base: BaseDescriptor, *, seed: int) -> None:
    """A PEFT LoRA on every linear layer of the first blocks, as large as the weights are."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    leaves: set[str] = set()
    for module in base.modules:
        parts = module.name.split(".")
        if module.kind != "linear" or parts[:2] != ["model", "layers"] or int(parts[2]) >= LAYERS:
            continue
        leaves.add(parts[-1])
        a = torch.randn(RANK, module.in_features, generator=generator)
        b = torch.randn(module.out_features, RANK, generator=generator)
        prefix = f"base_model.model.{module.name}"
        tensors[f"{prefix}.lora_A.weight"] = a / module.in_features**0.5
        tensors[f"{prefix}.lora_B.weight"] = b
    target.mkdir(parents=True)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": sorted(leaves),
        "layers_to_transform": list(range(LAYERS)),
        "bias": "none",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    (target / "adapter_config.json").write_text(json.dumps(config))
