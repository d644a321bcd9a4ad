"""Compiled operators for norms and activations, where vLLM would run torch's one by one.

vLLM 0.32 has `rms_norm`, `fused_add_rms_norm`, `silu_and_mul`, … compiled for CPUs
(csrc/cpu/layernorm.cpp, activation.cpp) but calls them on other devices only
(vllm/kernels/vllm_c.py; activation.py, `forward_cpu`): on CPUs it counts on the compiler to fuse
torch's operators. An engine with LoRA is never compiled, so each norm is 8 operators and each
activation 4, with their Python, for every layer of every step.

The compiled ones compute in fp32 and round once; torch's round before the weight as well. Of
activations vLLM's calls the C library's expf for each number, which makes it slower than torch's in
prefill: this project's own (native/gated.h) goes first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from server.vllm_plugin.mixtures import after_import
from server.vllm_plugin.native.library import load

# They work on whole vectors, of 16 or 32 elements by the dtype.
_WIDTH = 32
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def install() -> None:
    """Take them in every layer made from now on. A compiled model never asks for these methods.

    Their modules are not imported here: that takes seconds in processes that make no layers.
    """
    after_import("vllm.model_executor.layers.layernorm", _take_norms)
    after_import("vllm.model_executor.layers.activation", _take_activations)


def _take_norms(module: ModuleType) -> None:
    module.RMSNorm.forward_cpu = rms_norm


def _take_activations(module: ModuleType) -> None:
    module.SiluAndMul.forward_cpu = silu_and_mul


@functools.cache
def _operator(name: str) -> Callable[..., None] | None:
    """An operator of vLLM's library; None in a build without it. Asked when a model runs: then
    the library is loaded."""
    found: Callable[..., None] | None = getattr(torch.ops._C, name, None)
    return found


def rms_norm(layer: Any, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
    """RMSNorm.forward_cpu: the norm of `x` [..., hidden], with `residual` that of their sum.

    One tensor, or with a residual the pair (norm, sum): both are written into the arguments, as on
    vLLM's other devices.
    """
    operator = _operator("rms_norm" if residual is None else "fused_add_rms_norm")
    weight = layer.weight if layer.has_weight else None
    if (
        operator is None
        or x.shape[-1] % _WIDTH
        or x.dtype not in _DTYPES
        or (weight is not None and weight.dtype != x.dtype)
        or layer.variance_size_override is not None
    ):
        return layer.forward_native(x, residual)
    if residual is None:
        out = torch.empty(x.shape, dtype=x.dtype)
        operator(out, x.contiguous(), weight, layer.variance_epsilon)
        return out
    if not (x.is_contiguous() and residual.is_contiguous() and residual.dtype == x.dtype):
        return layer.forward_native(x, residual)
    operator(x, residual, weight, layer.variance_epsilon)
    return x, residual


def silu_and_mul(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """SiluAndMul.forward_cpu: of `x` [..., 2d] the silu of the first half times the second."""
    if x.dtype not in _DTYPES or not x.is_contiguous():
        return layer.forward_native(x)  # type: ignore[no-any-return]
    width = x.shape[-1] // 2
    library = load()
    if library is not None and (code := library.types.get(x.dtype)) is not None:
        out = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
        rows = x.numel() // x.shape[-1]
        library.silu_and_mul(out.data_ptr(), x.data_ptr(), rows, width, code, library.parts())
        return out
    operator = _operator("silu_and_mul")
    if operator is None or width % _WIDTH:
        return layer.forward_native(x)  # type: ignore[no-any-return]
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
    operator(out, x)
    return out
