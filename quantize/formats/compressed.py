"""compressed-tensors, which llm-compressor writes: packed integers, plain int8 and plain fp8.

`weight_packed` int32 [out, in·bits/32] holds code + 2^(bits−1), packed along the inputs, with the
shape in `weight_shape`; or `weight` is int8 or fp8 [out, in] as it is. `weight_scale` is one
number, [out, 1], [out, groups] or a grid of blocks; `weight_zero_point` alike (packed along the
outputs where the weight is packed), none where symmetric; `weight_g_idx` [in] is the group of each
input. W = (code − zero) · scale
(compressed_tensors: compressors/pack_quantized, compressors/naive_quantized,
quantization/lifecycle/forward.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from adapters.errors import BaseError
from adapters.intake.raw import LazyTensor
from quantize.formats.packing import WORD_BITS, unpacked
from quantize.formats.weights import Tensors, Weight, expect, modules_with, take

_FLOATS = ("F16", "BF16", "F32")
_PLAIN = ("I8", "F8_E4M3")


def compressed_weights(tensors: Tensors, config: Mapping[str, Any]) -> Iterator[Weight]:
    """Every layer with `weight_packed`, or with a `weight_scale` beside an int8 or fp8 `weight`."""
    widths = _widths(config)
    for module in modules_with(tensors, "weight_packed"):
        yield _packed(module, tensors, widths)
    for module in modules_with(tensors, "weight_scale"):
        yield _plain(module, tensors)
    # Scales of activations and of the KV cache change no weight.
    for name in [n for n in tensors if n.endswith(_OF_ACTIVATIONS)]:
        del tensors[name]


_OF_ACTIVATIONS = (
    ".input_scale",
    ".input_zero_point",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
)


def _widths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The bits of the config's groups of layers."""
    groups = config.get("config_groups")
    found = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        bits = weights.get("num_bits") if isinstance(weights, dict) else None
        if type(bits) is int and 1 <= bits <= 8:
            found.append(bits)
    return tuple(dict.fromkeys(found))


def _packed(module: str, tensors: Tensors, widths: tuple[int, ...]) -> Weight:
    codes = take(tensors, f"{module}.weight_packed")
    if codes.dtype != "I32" or f"{module}.weight_global_scale" in tensors:
        raise BaseError(f"'{codes.name}' is packed in a way that cannot be read here")
    scale, sized = (take(tensors, f"{module}.{leaf}") for leaf in ("weight_scale", "weight_shape"))
    zero = tensors.pop(f"{module}.weight_zero_point", None)
    order = tensors.pop(f"{module}.weight_g_idx", None)
    expect(sized, (2,), ("I64", "I32"))
    shape = (int(sized.load()[0]), int(sized.load()[1]))
    fits = [b for b in widths if codes.shape == (shape[0], -(-shape[1] // (WORD_BITS // b)))]
    if not fits:
        raise BaseError(
            f"'{codes.name}' {list(codes.shape)} cannot hold {list(shape)} in the bits that "
            "quantization_config names"
        )
    _check_grid(scale, shape)
    read = partial(_read_packed, codes, scale, zero, order, shape, fits[0])
    return Weight(f"{module}.weight", shape, True, read)


def _read_packed(
    codes: LazyTensor,
    scale: LazyTensor,
    zero: LazyTensor | None,
    order: LazyTensor | None,
    shape: tuple[int, int],
    bits: int,
) -> torch.Tensor:
    half = 1 << (bits - 1)
    values = unpacked(codes.load(), bits, 1)[:, : shape[1]] - half
    offsets = None
    if zero is not None:
        offsets = unpacked(zero.load(), bits, 0)[: shape[0]] - half
    return _scaled(values.to(torch.float32), scale, offsets, order)


def _plain(module: str, tensors: Tensors) -> Weight:
    values = tensors.get(f"{module}.weight")
    if values is None or values.dtype not in _PLAIN or len(values.shape) != 2:
        kept = "no weight" if values is None else f"{values.dtype} {list(values.shape)}"
        raise BaseError(f"'{module}' has a weight_scale and {kept}, which cannot be read here")
    del tensors[values.name]
    scale = take(tensors, f"{module}.weight_scale")
    zero = tensors.pop(f"{module}.weight_zero_point", None)
    order = tensors.pop(f"{module}.weight_g_idx", None)
    _check_grid(scale, values.shape)
    return Weight(values.name, values.shape, True, partial(_read_plain, values, scale, zero, order))


def _read_plain(
    values: LazyTensor, scale: LazyTensor, zero: LazyTensor | None, order: LazyTensor | None
) -> torch.Tensor:
    offsets = None if zero is None else zero.load()
    return _scaled(values.load().to(torch.float32), scale, offsets, order)


def _scaled(
    values: torch.Tensor,
    scale: LazyTensor,
    offsets: torch.Tensor | None,
    order: LazyTensor | None,
) -> torch.Tensor:
    factors = scale.load().to(torch.float32)
    groups = None
    if order is not None:
        groups = order.load().to(torch.int64)
        if groups.shape != values.shape[1:] or int(groups.max()) >= factors.shape[-1]:
            raise BaseError(f"'{order.name}' names a group that there is not")
    if offsets is not None:
        values = values - _spread(offsets.to(torch.float32), values, groups)
    return values * _spread(factors, values, groups)


def _spread(grid: torch.Tensor, values: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    """A number for each value: of all, of its row, of its group or of its block."""
    if grid.ndim < 2:
        return grid.reshape(-1, 1)
    if groups is not None and bool((groups >= 0).all()):
        return grid[:, groups]
    for axis in (0, 1):
        size = -(-values.shape[axis] // grid.shape[axis])
        if grid.shape[axis] > 1 and size > 1:
            grid = grid.repeat_interleave(size, axis).narrow(axis, 0, values.shape[axis])
    return grid


def _check_grid(scale: LazyTensor, shape: tuple[int, ...]) -> None:
    wrong = scale.dtype not in _FLOATS
    if len(scale.shape) == 2:
        wrong = wrong or any(
            not count or -(-size // -(-size // count)) != count
            for count, size in zip(scale.shape, shape, strict=True)
        )
    else:
        wrong = wrong or scale.count != 1
    if wrong:
        raise BaseError(
            f"'{scale.name}' is {scale.dtype} {list(scale.shape)}, no scales for {list(shape)}"
        )
