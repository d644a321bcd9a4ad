"""A base of a few kilobytes and adapters for it, as transformers and PEFT write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TinyArtifacts:
    """Directories: a base, two sound adapters, one with a NaN in it, one for the merged lane."""

    base: Path
    first: Path
    second: Path
    poisoned: Path
    norm: Path


def write_tiny_artifacts(root: Path) -> TinyArtifacts:
    """Write all of them under `root`; the same every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    made = TinyArtifacts(
        root / "base", root / "first", root / "second", root / "poisoned", root / "norm"
    )
    _write_adapter(made.base, made.first, seed=1)
    _write_adapter(made.base, made.second, seed=2)
    _write_adapter(made.base, made.poisoned, seed=3, poison=True)
    _write_norm(made.norm)
    return made


def _write_norm(target: Path) -> None:
    """A trained norm and nothing else: no plain LoRA expresses it, and it has no rank."""
    import torch
    from safetensors.torch import save_file

    target.mkdir()
    name = "base_model.model.model.norm.weight"
    save_file({name: torch.full((32,), 1.5)}, target / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "modules_to_save": ["model.norm"]}
    (target / "adapter_config.json").write_text(json.dumps(config))


def _write_adapter(base: Path, target: Path, *, seed: int, poison: bool = False) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        ),
    )
    if poison:
        weight = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
        with torch.no_grad():
            weight[0, 0] = float("nan")
    model.save_pretrained(target)
