"""A store that a real `adapterctl serve` takes: a base of a few kilobytes and adapters for it,
registered by the real intake; written without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.catalog import Catalog

BASE = "tiny"
HIDDEN, INNER, LAYERS, WORDS, RANK = 32, 48, 2, 64, 4
# Adapters, and how many versions each has.
ADAPTERS = {"bot": 3, "other": 1}

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": WORDS,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_BLOCKS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def make_store(root: Path) -> Path:
    """`root`/store with the base and every adapter; `bot:prod` is its first version."""
    base = write_base(root / "base")
    with Catalog.init(root / "store") as catalog:
        catalog.base_add(BASE, base)
        seed = 0
        for name, versions in ADAPTERS.items():
            for _ in range(versions):
                seed += 1
                catalog.register(
                    str(write_adapter(root / f"adapter-{seed}", seed)), name=name, base=BASE
                )
        catalog.tag("bot:prod", "v1")
    return root / "store"


def write_base(directory: Path) -> Path:
    """A Llama with random weights."""
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {"model.embed_tokens.weight": (WORDS, HIDDEN), "lm_head.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{block}.weight": shape for block, shape in _BLOCKS.items()}
        shapes |= {
            f"{prefix}{norm}.weight": (HIDDEN,)
            for norm in ("input_layernorm", "post_attention_layernorm")
        }
    shapes["model.norm.weight"] = (HIDDEN,)
    directory.mkdir()
    tensors = {name: random.random(shape, dtype=np.float32) for name, shape in shapes.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_CONFIG))
    return directory


def write_adapter(directory: Path, seed: int) -> Path:
    """A LoRA on q_proj and v_proj, as PEFT writes it."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[f"{name}A.weight"] = random.standard_normal((RANK, HIDDEN), dtype=np.float32)
            tensors[f"{name}B.weight"] = random.standard_normal((HIDDEN, RANK), dtype=np.float32)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory
