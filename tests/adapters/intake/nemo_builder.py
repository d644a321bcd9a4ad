"""Writes .nemo files of NeMo 1 by the rules of its converter's sources, row by row."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml

from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import Tensors

HEADS, GROUPS, RANK, ALPHA = 4, 2, 4, 10


def joined_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, size: int) -> torch.Tensor:
    """Rows by query group: its query heads, its key head, its value head."""
    found = []
    for group in range(GROUPS):
        for head in range(group * HEADS // GROUPS, (group + 1) * HEADS // GROUPS):
            found += [q[head * size + row] for row in range(size)]
        for one in (k, v):
            found += [one[group * size + row] for row in range(size)]
    return torch.stack(found)


def nemo_state(tensors: Tensors, layers: int, size: int, *, joined: bool) -> Tensors:
    """Under NeMo's names, its joint layers joint (`variant: nemo`) or not (`canonical`)."""
    state: Tensors = {}
    for layer in range(layers):
        here = f"model.layers.{layer}"
        attention, mlp = f"{here}.self_attn", f"{here}.mlp"
        stem = f"model.decoder.layers.{layer}"

        def put(where: str, adapter: str, a: torch.Tensor, b: torch.Tensor, to: str = stem) -> None:
            name = f"{to}.{where}.adapter_layer.{adapter}"
            state[f"{name}.linear_in.weight"] = a
            state[f"{name}.linear_out.weight"] = b

        def pair(module: str) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]

        put("self_attention", "lora_dense_attention_adapter", *pair(f"{attention}.o_proj"))
        put("mlp", "lora_4htoh_adapter", *pair(f"{mlp}.down_proj"))
        if joined:
            q, k, v = (tensors[f"{attention}.{n}_proj.lora_B"] for n in "qkv")
            a = tensors[f"{attention}.q_proj.lora_A"]
            put("self_attention", "lora_kqv_adapter", a, joined_qkv(q, k, v, size))
            halves = [tensors[f"{mlp}.{n}_proj.lora_B"] for n in ("gate", "up")]
            a = tensors[f"{mlp}.gate_proj.lora_A"]
            put("mlp", "lora_hto4h_adapter", a, torch.cat(halves))
            continue
        for name in "qkv":
            adapter = f"lora_unfused_kqv_adapter.{name}_adapter"
            put("self_attention", adapter, *pair(f"{attention}.{name}_proj"))
        for name in ("gate", "up"):
            put("mlp", f"lora_unfused_hto4h_adapter.{name}_adapter", *pair(f"{mlp}.{name}_proj"))
    return state


def nemo_config(size: int, **values: Any) -> dict[str, Any]:
    tuning = {"adapter_dim": RANK, "alpha": ALPHA, "variant": "nemo"}
    return {
        "hidden_size": 32,
        "num_attention_heads": HEADS,
        "num_query_groups": GROUPS,
        "kv_channels": size,
        "num_layers": 2,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "restore_from_path": "llama.nemo",
        "peft": {"peft_scheme": "lora", "lora_tuning": tuning},
        **values,
    }


def pack(path: Path, members: dict[str, bytes], mode: Any = "w:") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def pickled(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def nemo_members(state: Any, config: dict[str, Any]) -> dict[str, bytes]:
    return {
        "./model_config.yaml": yaml.safe_dump(config).encode(),
        "./model_weights.ckpt": pickled(state),
    }


def write_nemo(folder: Path, base: BaseDescriptor) -> None:
    """A sound adapter on the output projections of `base`."""
    state: Tensors = {}
    for spec in base.modules:
        if spec.name.endswith("o_proj"):
            layer = spec.name.split(".")[2]
            stem = f"model.decoder.layers.{layer}.self_attention.adapter_layer"
            name = f"{stem}.lora_dense_attention_adapter"
            state[f"{name}.linear_in.weight"] = torch.ones(RANK, spec.in_features)
            state[f"{name}.linear_out.weight"] = torch.ones(spec.out_features, RANK)
    pack(folder / "a.nemo", nemo_members(state, nemo_config(8)))
