"""Quantized checkpoints to describe: the committed real ones, and what compressed-tensors makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ARTIFACTS = Path(__file__).parents[2] / "quantize" / "artifacts"
TRAINED = ARTIFACTS / "trained"
AUTOAWQ = ARTIFACTS / "autoawq"
AUTOGPTQ = ARTIFACTS / "autogptq"
Tensors = dict[str, torch.Tensor]


def edit_config(path: Path, **changes: Any) -> None:
    """Changes the quantization_config of a copy; None takes a key away."""
    config = json.loads((path / "config.json").read_text())
    said = {**config["quantization_config"], **changes}
    config["quantization_config"] = {k: v for k, v in said.items() if v is not None}
    (path / "config.json").write_text(json.dumps(config))


def edit_model(path: Path, **changes: Any) -> None:
    """Changes keys of a copy's config.json; None takes a key away."""
    config = {**json.loads((path / "config.json").read_text()), **changes}
    kept = {k: v for k, v in config.items() if v is not None}
    (path / "config.json").write_text(json.dumps(kept))


def tensors_of(path: Path) -> tuple[Path, Tensors]:
    """The one file with weights, and what is in it."""
    (file,) = path.glob("*.safetensors")
    return file, load_file(file)


def edit_tensors(path: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Puts tensors into a copy; None takes one away."""
    file, tensors = tensors_of(path)
    merged = {**tensors, **changes}
    kept = {name: value for name, value in merged.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


def write_compressed(
    base: Path, out: Path, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, form: str
) -> Path:
    """`base` rounded to the nearest, in compressed-tensors' own hand; `weights` and `inputs` are
    its QuantizationArgs."""
    from compressed_tensors import quantization
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    args = quantization.QuantizationArgs(**weights)
    scheme = quantization.QuantizationScheme(
        targets=["Linear"],
        weights=args,
        input_activations=None if inputs is None else quantization.QuantizationArgs(**inputs),
        format=form,
    )
    config = quantization.QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=["lm_head"],
        format=form,
        quantization_status="compressed",
    )
    quantization.apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            rows = module.weight.data
            grouped = rows.unflatten(-1, (-1, args.group_size or rows.shape[-1]))
            scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    return out


def write_w4a16(out: Path) -> Path:
    """4 bits in groups of 32, asymmetric, 16-bit activations."""
    weights = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}
    return write_compressed(TRAINED, out, weights, None, "pack-quantized")


def write_w8a8(out: Path) -> Path:
    """int8 weights with a scale a row, int8 activations with one a token."""
    weights = {"num_bits": 8, "strategy": "channel", "symmetric": True}
    inputs = {"num_bits": 8, "strategy": "token", "dynamic": True}
    return write_compressed(TRAINED, out, weights, inputs, "int-quantized")


def write_nf4(out: Path) -> Path:
    """The shapes of what transformers saves of a model under bitsandbytes' NF4."""
    shutil.copytree(TRAINED, out)
    file, tensors = tensors_of(out)
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        count = tensors[name].numel()
        tensors[name] = torch.zeros(count // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(count // 64)
        tensors[f"{name}.quant_map"] = torch.linspace(-1, 1, 16)
    save_file(tensors, file, metadata={"format": "pt"})
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    edit_model(out, quantization_config=said)
    return out
