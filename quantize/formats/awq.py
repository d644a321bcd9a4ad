"""The layout that AutoAWQ established ("gemm"); GPTQModel and AutoRound write it, too.

A linear layer is `qweight` int32 [in, out/8], `qzeros` int32 [groups, out/8] and `scales`
[groups, out]; a word holds the codes of eight outputs in the order 0 2 4 6 1 3 5 7. Then
W[o, i] = scales[g, o] · (code[i, o] − zero[g, o]) with g = i // group_size
(awq/modules/linear/gemm.py; awq/utils/packing_utils.py).
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

_BITS = 4
# Where in a word the code of each of eight outputs lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_SCALES = ("F16", "BF16", "F32")


def awq_weights(tensors: Tensors, config: Mapping[str, Any]) -> Iterator[Weight]:
    """Every layer with a `qweight`. `config`: bits (w_bit), group_size (q_group_size), version."""
    bits = whole_number(config, "bits" if "bits" in config else "w_bit")
    group = whole_number(config, "group_size" if "group_size" in config else "q_group_size", -1)
    version = str(config.get("version", config.get("checkpoint_format", "gemm"))).lower()
    if bits != _BITS:
        raise BaseError(f"AWQ with {bits} bits cannot be read here; with 4 it can")
    if version != "gemm":
        raise BaseError(f"AWQ's version '{version}' cannot be read here: save it as 'gemm'")
    for module in modules_with(tensors, "qweight"):
        yield _weight(module, tensors, group)


def _weight(module: str, tensors: Tensors, group: int) -> Weight:
    codes, zeros, scales = (
        take(tensors, f"{module}.{leaf}") for leaf in ("qweight", "qzeros", "scales")
    )
    inputs, outputs = codes.shape[0], codes.shape[1] * (WORD_BITS // _BITS)
    size = group if group > 0 else inputs
    groups = -(-inputs // size)
    expect(codes, (inputs, codes.shape[1]), ("I32",))
    expect(zeros, (groups, codes.shape[1]), ("I32",))
    expect(scales, (groups, outputs), _SCALES)
    read = partial(_read, codes, zeros, scales, size)
    return Weight(f"{module}.weight", (outputs, inputs), True, read)


def _read(codes: LazyTensor, zeros: LazyTensor, scales: LazyTensor, size: int) -> torch.Tensor:
    values, offsets = (_ordered(unpacked(t.load(), _BITS, 1)) for t in (codes, zeros))
    factors = scales.load().to(torch.float32)
    groups = torch.arange(values.shape[0]) // size
    return ((values - offsets[groups]) * factors[groups]).T.contiguous()


def _ordered(codes: torch.Tensor) -> torch.Tensor:
    rows = codes.reshape(codes.shape[0], -1, len(_PLACES))
    return rows[:, :, list(_PLACES)].reshape(codes.shape)
