"""A model's weights in fp32, whatever tool quantized it: one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters.bases.headers import TensorInfo
from adapters.bases.shards import BaseFiles, open_base
from adapters.errors import ArtifactError, BaseError
from adapters.intake import tensors as tensor_files
from adapters.intake.lora import FLOATS
from adapters.intake.raw import LazyTensor
from quantize.formats.awq import awq_weights
from quantize.formats.bitsandbytes import bitsandbytes_weights
from quantize.formats.compressed import compressed_weights
from quantize.formats.gptq import gptq_weights
from quantize.formats.weights import Reader, Tensors, Weight

# By the quant_method of a config's quantization_config.
READERS: Mapping[str, Reader] = {
    "awq": awq_weights,
    "bitsandbytes": bitsandbytes_weights,
    "compressed-tensors": compressed_weights,
    "gptq": gptq_weights,
}
# AutoRound's own name for what it also writes under those of the others.
_PACKED_AS = {"awq": "awq", "gptq": "gptq"}
# Buffers: positions, masks.
_NO_WEIGHTS = {"BOOL", "I64"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory: the parameters of its 16-bit model by name, and how it was quantized."""

    directory: Path
    quantization: str | None
    weights: Mapping[str, Weight]


def read_weights(model: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(parameter name of the 16-bit model, fp32 tensor) of a Hugging Face directory.

    A quantized weight comes as its tool's own dequantization has it, before that is rounded to 16
    bits; a linear layer's is [out, in]. Memory: one tensor. Raises BaseError for a quantization
    that is not known here, and for a checkpoint that is damaged.
    """
    for name, weight in open_checkpoint(model).weights.items():
        yield name, weight.read()


def open_checkpoint(model: Path) -> Checkpoint:
    """The directory's parameters, none of them read yet; raises BaseError."""
    files = open_base(model)
    tensors = lazy_tensors(files)
    config = files.config.get("quantization_config")
    method, found = None, {}
    if config:
        method = quantization_of(config, model)
        found = {weight.name: weight for weight in READERS[method](tensors, config)}
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS:
            found[name] = Weight(name, tensor.shape, False, partial(_plain, tensor))
        elif tensor.dtype not in _NO_WEIGHTS:
            raise BaseError(
                f"'{name}' in {model} is kept as {tensor.dtype}, which its quantization_config "
                "does not explain"
            )
    return Checkpoint(model, method, found)


def quantization_of(config: Any, model: Path) -> str:
    """The key in READERS; raises BaseError where there is none."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    if method in ("auto-round", "intel/auto-round"):
        packed = str(config.get("packing_format", "")).rpartition("auto_")[2]
        method = _PACKED_AS.get(packed, method)
    if not isinstance(method, str) or method not in READERS:
        raise BaseError(
            f"{model} is quantized by {method!r}, which cannot be read here; "
            f"known are {', '.join(READERS)}"
        )
    return method


def lazy_tensors(files: BaseFiles) -> Tensors:
    """Every tensor of a model directory, as it lies there."""
    return {
        name: LazyTensor(
            name, info.dtype, info.shape, partial(_load, files.root / shard, name, info)
        )
        for name, (shard, info) in files.tensors().items()
    }


def _load(path: Path, name: str, info: TensorInfo) -> torch.Tensor:
    try:
        return tensor_files.read_tensor(path, name, info)
    except ArtifactError as fault:
        raise BaseError(fault.message) from None


def _plain(tensor: LazyTensor) -> torch.Tensor:
    return tensor.load().to(torch.float32)
