"""vLLM's LoRA layers, shorter: what they ask anew in every call is asked once.

A step of a small model is bound by what Python does around each product. vLLM 0.32's layers look
every attribute of the wrapped layer up through a `__getattr__` of their own, several times a call,
and call the LoRA arithmetic also where no row has an adapter. Nothing they compute is changed:
with tensor parallelism, sharded LoRA, streams or an input to be split, vLLM's own code runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from vllm.lora.layers import (
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    RowParallelLinearWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.linear import MergedColumnParallelLinear

# Where a layer keeps its short forward, or None where vLLM's own is needed.
_SHORT = "_adapterctl_forward"
Forward = Callable[[torch.Tensor], Any]


def install() -> None:
    """Change vLLM's classes; safe to call again."""
    for kind in (ColumnParallelLinearWithLoRA, RowParallelLinearWithLoRA):
        if not hasattr(kind.forward, "__wrapped__"):
            kind.forward = asked_once(kind.forward)
    embedding = VocabParallelEmbeddingWithLoRA
    if not hasattr(embedding.forward, "__wrapped__"):
        embedding.forward = looked_up_once(embedding.forward)


def looked_up_once(
    original: Callable[[Any, torch.Tensor], torch.Tensor],
) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The embedding LoRA layer's `forward` without the adapters' rows where no row has any."""

    @functools.wraps(original)
    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if getattr(layer.punica_wrapper, "idle", False):
            found: torch.Tensor = layer.base_layer.forward(x)
            return found
        return original(layer, x)

    return forward


def asked_once(original: Callable[[Any, torch.Tensor], Any]) -> Callable[[Any, torch.Tensor], Any]:
    """A linear LoRA layer's `forward` that finds out once what its calls are."""

    @functools.wraps(original)
    def forward(layer: Any, input_: torch.Tensor) -> Any:
        # Kept in the instance's dictionary: the layer's own __getattr__ is what costs.
        kept = layer.__dict__
        if _SHORT not in kept:
            kept[_SHORT] = short_forward(layer)
        short = kept[_SHORT]
        return original(layer, input_) if short is None else short(input_)

    return forward


def short_forward(layer: Any) -> Forward | None:
    """`forward` of a layer whose whole work is base, then LoRA; None for any other."""
    base = layer.base_layer
    if (
        layer.tp_size != 1
        or layer._enable_aux_cuda_stream
        or not _applies_plainly(layer)
        or not getattr(base, "input_is_parallel", True)
        or not hasattr(layer, "punica_wrapper")
        or not hasattr(layer.punica_wrapper, "idle")
    ):
        return None
    wrapper = layer.punica_wrapper
    product = layer._get_quant_method().apply
    finish = layer._apply_lora_to_output
    a_stacks, b_stacks, sizes = layer.lora_a_stacked, layer.lora_b_stacked, layer.output_slices
    bias = None if base.skip_bias_add else base.bias
    kept_bias = base.bias if base.skip_bias_add else None
    pair = bool(base.return_bias)

    def forward(x: torch.Tensor) -> Any:
        output = product(base, x, bias)
        if not wrapper.idle:
            if output.dim() == 2:
                wrapper.add_lora_linear(output, x, a_stacks, b_stacks, 1.0, sizes)
            else:
                output = finish(x, output)
        return (output, kept_bias) if pair else output

    return forward


def _applies_plainly(layer: Any) -> bool:
    """Whether `apply` is the base's product and then LoRA, and not the base's own forward."""
    apply = type(layer).apply
    if apply is MergedColumnParallelLinearWithLoRA.apply:
        # It calls a forward that a subclass of the base has for itself.
        return (
            getattr(type(layer.base_layer), "forward", None) is MergedColumnParallelLinear.forward
        )
    return apply is BaseLinearLayerWithLoRA.apply
