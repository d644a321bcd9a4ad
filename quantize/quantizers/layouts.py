"""How each checkpoint format keeps a rounded linear module, and says so in config.json.

The formats are those that AutoGPTQ and AutoAWQ established (its GEMM version), as vLLM reads them
(auto_gptq.py and auto_awq.py in vllm/model_executor/layers/quantization): 4-bit values, eight to an
int32, GPTQ's along the inputs and AWQ's along the outputs; zero points eight to an int32 along the
outputs; one scale for each group of inputs and output. Int8 is compressed-tensors' int-quantized:
values as they are, one scale for each output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quantize.quantizers.recipe import Recipe

# Suffix of the tensor's name -> its safetensors dtype and shape.
Layout = Mapping[str, tuple[str, tuple[int, ...]]]


def layout_of(recipe: Recipe, outputs: int, inputs: int) -> Layout:
    """The tensors of one linear module with `inputs` and `outputs`."""
    return _LAYOUTS[recipe.method](recipe, outputs, inputs)


def quantization_config(recipe: Recipe) -> dict[str, Any]:
    """The `quantization_config` of config.json.

    Only what transformers, vLLM and gptqmodel read: what a tool adds about itself is in the
    version's lineage.
    """
    return _CONFIGS[recipe.method](recipe)


def _awq(recipe: Recipe, outputs: int, inputs: int) -> Layout:
    packed = 32 // recipe.bits
    groups = _groups(recipe, inputs)
    return {
        "qweight": ("I32", (inputs, outputs // packed)),
        "qzeros": ("I32", (groups, outputs // packed)),
        "scales": ("F16", (groups, outputs)),
    }


def _gptq(recipe: Recipe, outputs: int, inputs: int) -> Layout:
    packed = 32 // recipe.bits
    groups = _groups(recipe, inputs)
    return {
        "qweight": ("I32", (inputs // packed, outputs)),
        "qzeros": ("I32", (groups, outputs // packed)),
        "scales": ("F16", (groups, outputs)),
        "g_idx": ("I32", (inputs,)),
    }


def _int8(recipe: Recipe, outputs: int, inputs: int) -> Layout:
    return {"weight": ("I8", (outputs, inputs)), "weight_scale": ("F32", (outputs, 1))}


def _groups(recipe: Recipe, inputs: int) -> int:
    return 1 if recipe.group_size == -1 else inputs // recipe.group_size


def _awq_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "zero_point": not recipe.symmetric,
        "modules_to_not_convert": None,
    }


def _gptq_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": recipe.bits,
        "group_size": recipe.group_size,
        "sym": recipe.symmetric,
        "desc_act": recipe.desc_act,
        "lm_head": False,
    }


def _int8_config(recipe: Recipe) -> dict[str, Any]:
    values = {"type": "int", "num_bits": recipe.bits, "symmetric": recipe.symmetric}
    group = {
        "targets": ["Linear"],
        "weights": {**values, "strategy": "channel", "dynamic": False},
        "input_activations": {**values, "strategy": "token", "dynamic": True},
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


_LAYOUTS: Mapping[str, Callable[[Recipe, int, int], Layout]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _int8,
}
_CONFIGS: Mapping[str, Callable[[Recipe], dict[str, Any]]] = {
    "awq": _awq_config,
    "gptq": _gptq_config,
    "compressed-tensors": _int8_config,
}
