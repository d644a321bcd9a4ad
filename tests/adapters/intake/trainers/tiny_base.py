"""Tiny bases that every trainer's environment builds alike, bit for bit, without torch.

numpy promises that RandomState's stream never changes, so no weights need to be committed: the
scripts that make artifacts and the tests that read them have the same base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VOCABULARY = 48
TOKENS = [[(7 * i + 3) % VOCABULARY for i in range(16)]]

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 8,
        "tie_word_embeddings": False,
    },
    "llama-tied": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 8,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "tie_word_embeddings": True,
    },
    "qwen3-moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "tie_word_embeddings": False,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
}


def config_of(kind: str) -> dict[str, Any]:
    return {**_COMMON, **CONFIGS[kind]}


def weights_of(kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """Hugging Face's names, fp32."""
    config = config_of(kind)
    stream = np.random.RandomState(20)
    hidden = config["hidden_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{stem}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if kind == "qwen2":
                shapes[f"{stem}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{stem}.self_attn.o_proj.weight"] = (hidden, q)
        if kind.startswith("qwen3"):
            shapes[f"{stem}.self_attn.q_norm.weight"] = (head,)
            shapes[f"{stem}.self_attn.k_norm.weight"] = (head,)
        blocks, inner = [f"{stem}.mlp"], config["intermediate_size"]
        if "num_experts" in config:
            shapes[f"{stem}.mlp.gate.weight"] = (config["num_experts"], hidden)
            blocks = [f"{stem}.mlp.experts.{expert}" for expert in range(config["num_experts"])]
            inner = config["moe_intermediate_size"]
        for block in blocks:
            shapes[f"{block}.gate_proj.weight"] = (inner, hidden)
            shapes[f"{block}.up_proj.weight"] = (inner, hidden)
            shapes[f"{block}.down_proj.weight"] = (hidden, inner)
        shapes[f"{stem}.input_layernorm.weight"] = (hidden,)
        shapes[f"{stem}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    if kind == "gpt2":
        shapes = _gpt2_shapes(hidden, config["n_layer"], config["n_positions"])
    return {
        name: (
            stream.standard_normal(shape) * (0.2 if len(shape) == 2 else 0.1)
            + (1.0 if _is_norm(name) else 0.0)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def _gpt2_shapes(hidden: int, layers: int, positions: int) -> dict[str, tuple[int, ...]]:
    """GPT-2's own names; its Conv1D keeps weights as [in, out]."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, hidden),
        "transformer.wpe.weight": (positions, hidden),
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
    }
    sizes = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, 4 * hidden),
        "mlp.c_proj": (4 * hidden, hidden),
    }
    for layer in range(layers):
        stem = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            shapes[f"{stem}.{norm}.weight"] = shapes[f"{stem}.{norm}.bias"] = (hidden,)
        for name, (inputs, outputs) in sizes.items():
            shapes[f"{stem}.{name}.weight"] = (inputs, outputs)
            shapes[f"{stem}.{name}.bias"] = (outputs,)
    return shapes


def _is_norm(name: str) -> bool:
    return name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))


def write_base(folder: Path, kind: str) -> Path:
    """The base as a Hugging Face directory; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(kind), indent=2))
    save_file(weights_of(kind), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
