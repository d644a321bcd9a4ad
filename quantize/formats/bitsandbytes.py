"""Checkpoints that bitsandbytes wrote through transformers: four bits (NF4, FP4), int8.

Beside a four-bit `X.weight` [bytes, 1] lie `X.weight.absmax` and `.quant_map` (the code values),
with double quantization `.nested_absmax` and `.nested_quant_map`, and the bytes of a JSON document
under `.quant_state.bitsandbytes__nf4` (or fp4): blocksize, dtype, shape, nested_blocksize,
nested_offset. Beside an int8 `X.weight` lies `X.SCB`, the largest magnitude of each row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from adapters.bases.headers import ITEM_SIZE
from adapters.errors import BaseError
from adapters.intake.raw import LazyTensor
from quantize.formats.fourbit import (
    FourBitKind,
    NestedScales,
    from_bytes,
    stored_scales,
)
from quantize.formats.weights import Tensors, Weight, expect, modules_with, take

_STATE = "weight.quant_state.bitsandbytes__"
_KINDS: tuple[FourBitKind, ...] = ("nf4", "fp4")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_STATE_BYTES = 65_536
# How the library writes down that rows lie one after the other, the only order in checkpoints.
_ROWS = 0


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """A four-bit weight [out, in] of a checkpoint.

    `dtype` is that in which the library hands it out, `packed` its bytes, `scales()` the absmax of
    all blocks in fp32.
    """

    module: str
    kind: FourBitKind
    shape: tuple[int, ...]
    dtype: torch.dtype
    block: int
    double: bool
    packed: LazyTensor
    codes: LazyTensor
    scales: Callable[[], torch.Tensor]

    def values(self) -> torch.Tensor:
        """The whole weight in fp32, not rounded to any dtype."""
        packed = self.packed.load().reshape(-1).view(torch.uint8)
        found = from_bytes(packed, self.codes.load(), self.scales(), self.block)
        return found[: math.prod(self.shape)].reshape(self.shape)


def four_bit_weights(tensors: Tensors) -> Iterator[FourBitWeight]:
    """Takes the four-bit weights out of `tensors`; raises BaseError."""
    for kind in _KINDS:
        for module in modules_with(tensors, f"{_STATE}{kind}"):
            yield _four_bit(module, kind, tensors)


def bitsandbytes_weights(tensors: Tensors, config: Mapping[str, Any]) -> Iterator[Weight]:
    """Every four-bit and int8 weight, as the library's own dequantization hands it out."""
    for found in four_bit_weights(tensors):
        yield Weight(f"{found.module}.weight", found.shape, True, partial(_handed_out, found))
    for module in modules_with(tensors, "SCB"):
        yield _int8(module, tensors)


def _handed_out(weight: FourBitWeight) -> torch.Tensor:
    return weight.values().to(weight.dtype).to(torch.float32)


def _four_bit(module: str, kind: FourBitKind, tensors: Tensors) -> FourBitWeight:
    name = f"{module}.weight"
    state = _state(take(tensors, f"{module}.{_STATE}{kind}"))
    packed, absmax, codes = (take(tensors, f"{name}{leaf}") for leaf in ("", *_BESIDE))
    shape, block = tuple(state["shape"]), state["blocksize"]
    blocks = -(-math.prod(shape) // block)
    size = packed.count * ITEM_SIZE[packed.dtype]
    # A storage of wider items is filled up.
    if not 0 <= size - -(-math.prod(shape) // 2) < ITEM_SIZE[packed.dtype]:
        raise BaseError(f"'{name}' has {size} bytes for {list(shape)} in four bits each")
    expect(codes, (16,), ("F32",))
    nested = f"{name}.nested_absmax" in tensors
    expect(absmax, (blocks,), ("U8",) if nested else ("F32",))
    if nested:
        outer, outer_codes = (take(tensors, f"{name}{leaf}") for leaf in _NESTED)
        expect(outer_codes, (256,), ("F32",))
        expect(outer, (-(-blocks // state["nested_blocksize"]),), ("F32",))
        scales = partial(
            _nested_scales,
            absmax,
            outer,
            outer_codes,
            state["nested_blocksize"],
            state["nested_offset"],
        )
    else:
        scales = partial(_plain_scales, absmax)
    dtype = _DTYPES[state["dtype"]]
    return FourBitWeight(module, kind, shape, dtype, block, nested, packed, codes, scales)


_BESIDE = (".absmax", ".quant_map")
_NESTED = (".nested_absmax", ".nested_quant_map")


def _plain_scales(absmax: LazyTensor) -> torch.Tensor:
    return stored_scales(absmax.load(), None)


def _nested_scales(
    absmax: LazyTensor, outer: LazyTensor, codes: LazyTensor, block: int, offset: float
) -> torch.Tensor:
    nested = NestedScales(codes.load(), outer.load(), block, offset)
    return stored_scales(absmax.load(), nested)


def _state(tensor: LazyTensor) -> dict[str, Any]:
    """The JSON document, every entry that is used proved."""
    if tensor.dtype != "U8" or tensor.count > _STATE_BYTES:
        raise BaseError(f"'{tensor.name}' is no quantization state")
    try:
        state = json.loads(bytes(tensor.load().numpy()))
    except (ValueError, RecursionError):
        raise BaseError(f"'{tensor.name}' is no JSON document") from None
    if not isinstance(state, dict):
        raise BaseError(f"'{tensor.name}' is no JSON object")
    state.setdefault("nested_blocksize", 256)
    state.setdefault("nested_offset", 0.0)
    shape = state.get("shape")
    sound = (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(size) is int and size > 0 for size in shape)
        and all(_even_count(state.get(key)) for key in ("blocksize", "nested_blocksize"))
        and state.get("dtype") in _DTYPES
        and isinstance(state["nested_offset"], float | int)
    )
    if not sound:
        raise BaseError(f"'{tensor.name}' has no sound shape, blocksize, dtype and offset")
    return state


def _even_count(value: object) -> bool:
    return type(value) is int and value > 0 and value % 2 == 0


def _int8(module: str, tensors: Tensors) -> Weight:
    weight, scales = take(tensors, f"{module}.weight"), take(tensors, f"{module}.SCB")
    order = tensors.pop(f"{module}.weight_format", None)
    if len(weight.shape) != 2 or weight.dtype != "I8":
        raise BaseError(f"'{weight.name}' is {weight.dtype} {list(weight.shape)}, not int8 rows")
    expect(scales, weight.shape[:1], ("F32",))
    if order is not None and (order.count != 1 or int(order.load().reshape(-1)[0]) != _ROWS):
        raise BaseError(f"'{weight.name}' is laid out for one GPU's kernel: save it again on a CPU")
    return Weight(weight.name, weight.shape, True, partial(_rows, weight, scales))


def _rows(weight: LazyTensor, scales: LazyTensor) -> torch.Tensor:
    # As the library does it: by the reciprocal of 127 in fp32.
    return weight.load() * scales.load()[:, None] * (1 / 127)
