"""The layout that AutoGPTQ established; GPTQModel, Optimum, llm-compressor and AutoRound write it.

A linear layer is `qweight` int32 [in·bits/32, out], packed along the inputs; `qzeros` int32
[groups, out·bits/32], packed along the outputs; `scales` [groups, out]; `g_idx` int32 [in], the
group of each input, which is i // group_size unless the inputs were ordered (desc_act). Then
W[o, i] = scales[g, o] · (code[i, o] − zero[g, o]) with g = g_idx[i]
(gptqmodel/nn_modules/qlinear, `_dequantize_from_codes`).

The first version of the format (`checkpoint_format` "gptq", or none) keeps zero − 1. It was and is
subtracted from whole words, so it borrows from the next code where a zero is 0, and is undone by
adding to whole words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from adapters.errors import BaseError
from adapters.intake.raw import LazyTensor
from quantize.formats.packing import WORD_BITS, unpacked
from quantize.formats.weights import Tensors, Weight, expect, modules_with, take, whole_number

# Three bits have two packings that no config tells apart.
_BITS = (2, 4, 8)
_SCALES = ("F16", "BF16", "F32")


def gptq_weights(tensors: Tensors, config: Mapping[str, Any]) -> Iterator[Weight]:
    """Every layer with a `qweight`. `config`: bits, group_size, checkpoint_format."""
    bits, group = whole_number(config, "bits"), whole_number(config, "group_size", -1)
    if bits not in _BITS:
        raise BaseError(f"GPTQ with {bits} bits cannot be read here; with {_BITS} it can")
    version = config.get("checkpoint_format", "gptq")
    if version not in ("gptq", "gptq_v2"):
        raise BaseError(f"GPTQ's checkpoint_format {version!r} cannot be read here")
    for module in modules_with(tensors, "qweight"):
        yield _weight(module, tensors, bits, group, first_version=version == "gptq")


def _weight(module: str, tensors: Tensors, bits: int, group: int, first_version: bool) -> Weight:
    codes, zeros, scales = (
        take(tensors, f"{module}.{leaf}") for leaf in ("qweight", "qzeros", "scales")
    )
    order = tensors.pop(f"{module}.g_idx", None)
    per_word = WORD_BITS // bits
    inputs, outputs = codes.shape[0] * per_word, codes.shape[1]
    groups = 1 if group <= 0 else -(-inputs // group)
    expect(codes, (inputs // per_word, outputs), ("I32",))
    expect(zeros, (groups, -(-outputs // per_word)), ("I32",))
    expect(scales, (groups, outputs), _SCALES)
    if order is not None:
        expect(order, (inputs,), ("I32", "I64"))
    size = group if group > 0 else inputs
    read = partial(_read, codes, zeros, scales, order, bits, size, first_version)
    return Weight(f"{module}.weight", (outputs, inputs), True, read)


def _read(
    codes: LazyTensor,
    zeros: LazyTensor,
    scales: LazyTensor,
    order: LazyTensor | None,
    bits: int,
    size: int,
    first_version: bool,
) -> torch.Tensor:
    factors = scales.load().to(torch.float32)
    words = zeros.load()
    if first_version:
        # One in each code: 0x11111111 for four bits. Wraps around, as it did when subtracted.
        words = words + sum(1 << shift for shift in range(0, WORD_BITS, bits))
    offsets = unpacked(words, bits, 1)[:, : factors.shape[1]]
    values = unpacked(codes.load(), bits, 0)
    if order is None:
        groups = torch.arange(values.shape[0]) // size
    else:
        groups = order.load().to(torch.int64)
        # Negative ones count from the end, in the kernels and in Python alike.
        if bool(((groups < -len(factors)) | (groups >= len(factors))).any()):
            raise BaseError(f"'{order.name}' names a group that there is not")
    return ((values - offsets[groups]) * factors[groups]).T.contiguous()
