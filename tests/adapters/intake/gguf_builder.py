"""GGUF adapters as llama.cpp's convert_lora_to_gguf.py writes them, out of PEFT's factors.

llama.cpp is not installable from the package index, so this is a construction of our own: the file
is written by llama.cpp's gguf package, the contents follow the converter (LlamaModel.permute on B
of q and k for the architecture `llama`, token_embd's A turned).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
HEADS = {"q_proj": 4, "k_proj": 2}


def gguf_name(module: str) -> str:
    if module == "model.embed_tokens":
        return "token_embd.weight"
    if module == "lm_head":
        return "output.weight"
    parts = module.split(".")
    return f"blk.{parts[2]}.{NAMES[parts[-1]]}.weight"


def permute(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


def write_gguf(
    path: Path,
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    architecture: str = "llama",
    alpha: float | None = 6.0,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    kind: str = "adapter",
    extra: dict[str, np.ndarray[Any, Any]] | None = None,
    tokens: list[int] | None = None,
    heads: Mapping[str, int] = HEADS,
) -> None:
    """`factors` by Hugging Face module, in PEFT's layout; `heads` of q and k, by leaf."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    if tokens is not None:
        writer.add_array("adapter.alora.invocation_tokens", tokens)
    for module, (a, b) in factors.items():
        a_rows, b_rows = a.numpy(), b.numpy()
        leaf = module.rpartition(".")[2]
        if architecture == "llama" and leaf in heads:
            b_rows = permute(b_rows, heads[leaf])
        if leaf == "embed_tokens":
            a_rows = a_rows.T
        for name, values in (("lora_a", a_rows), ("lora_b", b_rows)):
            _add(writer, f"{gguf_name(module)}.{name}", values, quantization)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(
    writer: gguf.GGUFWriter,
    name: str,
    values: np.ndarray[Any, Any],
    quantization: gguf.GGMLQuantizationType,
) -> None:
    values = np.ascontiguousarray(values, dtype=np.float32)
    if quantization is gguf.GGMLQuantizationType.Q8_0 and values.shape[-1] % 32:
        quantization = gguf.GGMLQuantizationType.F16  # as llama.cpp falls back
    data = gguf.quants.quantize(values, quantization)
    writer.add_tensor(name, data, raw_dtype=quantization)
