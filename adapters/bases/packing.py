"""How quantized linear layers lie in a checkpoint: which tensors, of which dtype and shape.

Sizes are written as the formats' own documents have them: `in`, `out`; `in/p`, `out/p` are packed,
32/bits values to a word; `groups` is in/group size, 1 where a row has one scale. Sources:
AutoAWQ awq/modules/linear/gemm.py; AutoGPTQ auto_gptq/nn_modules/qlinear; compressed-tensors
compressors/pack_quantized and naive_quantized; transformers integrations/bitsandbytes. AutoRound
writes the first two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.bases.headers import TensorInfo
from adapters.errors import BaseError
from adapters.models import ModuleSpec

# Tensor name -> (shard, where it lies), as BaseFiles.tensors().
Stored = Mapping[str, tuple[str, TensorInfo]]

_FLOATS = ("F16", "BF16", "F32")
_INTEGERS = ("I32",)
_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a layer: `MODULE.leaf`. `when`: asymmetric ones only, or not always there."""

    leaf: str
    dtypes: tuple[str, ...]
    shape: tuple[str, ...]
    when: str = "always"


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a layer. `mark`, the first, is what a 16-bit layer does not have like this."""

    title: str
    pieces: tuple[Piece, ...]
    # What the bits of a weight are packed along, and must be a multiple of.
    packed: str | None

    @property
    def mark(self) -> Piece:
        return self.pieces[0]


LAYOUTS: Mapping[str, Layout] = {
    "awq": Layout(
        "AWQ (gemm)",
        (
            Piece("qweight", _INTEGERS, ("in", "out/p")),
            Piece("scales", _FLOATS, ("groups", "out")),
            Piece("qzeros", _INTEGERS, ("groups", "out/p")),
        ),
        packed="out",
    ),
    # v1 keeps zero points less one and v2 as they are, in the same shapes; AutoGPTQ writes a bias
    # of zeros where the model has none.
    "gptq": Layout(
        "GPTQ",
        (
            Piece("qweight", _INTEGERS, ("in/p", "out")),
            Piece("scales", _FLOATS, ("groups", "out")),
            Piece("qzeros", _INTEGERS, ("groups", "out/p")),
            Piece("g_idx", _INTEGERS, ("in",), when="optional"),
            Piece("bias", _FLOATS, ("out",), when="optional"),
        ),
        packed="in",
    ),
    "pack-quantized": Layout(
        "compressed-tensors (pack-quantized)",
        (
            Piece("weight_packed", _INTEGERS, ("out", "in/p")),
            Piece("weight_scale", _FLOATS, ("out", "groups")),
            Piece("weight_shape", ("I64", "I32"), ("2",)),
            Piece("weight_zero_point", _INTEGERS, ("out/p", "groups"), when="asymmetric"),
        ),
        packed="in",
    ),
    "int-quantized": Layout(
        "compressed-tensors (int-quantized)",
        (
            Piece("weight", ("I8",), ("out", "in")),
            Piece("weight_scale", _FLOATS, ("out", "1")),
        ),
        packed=None,
    ),
    # One scale for the whole matrix.
    "int-quantized, per tensor": Layout(
        "compressed-tensors (int-quantized)",
        (
            Piece("weight", ("I8",), ("out", "in")),
            Piece("weight_scale", _FLOATS, ("1",)),
        ),
        packed=None,
    ),
    "bitsandbytes 8 bits": Layout(
        "bitsandbytes (int8)",
        (
            Piece("weight", ("I8",), ("out", "in")),
            Piece("SCB", ("F32",), ("out",)),
        ),
        packed=None,
    ),
    # Two values to a byte, in one column; the blocks of its scales are bitsandbytes' own matter.
    "bitsandbytes 4 bits": Layout(
        "bitsandbytes (4 bits)",
        (Piece("weight", ("U8",), ("in*out/2", "1")), Piece("weight.quant_map", ("F32",), ("16",))),
        packed=None,
    ),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Bits of a weight and inputs to a scale (None: a row has one), as the config says them."""

    bits: int
    group_size: int | None
    symmetric: bool


def is_packed(module: str, layout: Layout, stored: Stored) -> bool:
    """Whether the checkpoint has `module` in this layout, be it right or wrong."""
    found = stored.get(f"{module}.{layout.mark.leaf}")
    return found is not None and found[1].dtype in layout.mark.dtypes


def check_layer(spec: ModuleSpec, layout: Layout, grid: Grid, stored: Stored) -> None:
    """Every tensor of one quantized layer is there, with dtype and shape; raises BaseError."""
    sizes = _sizes(spec, layout, grid)
    for piece in layout.pieces:
        name = f"{spec.name}.{piece.leaf}"
        found = stored.get(name)
        if found is None:
            if piece.when == "always" or (piece.when == "asymmetric" and not grid.symmetric):
                raise BaseError(
                    f"'{spec.name}' lacks its {piece.leaf}, which {layout.title} keeps beside "
                    f"{layout.mark.leaf}: the download is incomplete"
                )
            continue
        shard, info = found
        shape = tuple(_size(text, sizes) for text in piece.shape)
        if info.shape != shape or info.dtype not in piece.dtypes:
            raise BaseError(
                f"'{name}' in {shard} is {info.dtype} {list(info.shape)}; {_said(spec, grid)} make "
                f"{' or '.join(piece.dtypes)} {list(shape)} in {layout.title}: weights and "
                "quantization_config do not belong together"
            )


def measured_grid(spec: ModuleSpec, layout: Layout, grid: Grid, stored: Stored) -> Grid:
    """Bits and group of one layer by its tensors, where the config has several of them."""
    shapes = {
        piece.leaf: found[1].shape
        for piece in layout.pieces
        if (found := stored.get(f"{spec.name}.{piece.leaf}")) is not None
    }
    along = {"in/p": spec.in_features, "out/p": spec.out_features}
    bits, group = grid.bits, grid.group_size
    for piece in layout.pieces:
        shape = shapes.get(piece.leaf, ())
        if len(shape) != len(piece.shape):
            continue
        for text, size in zip(piece.shape, shape, strict=True):
            if piece is layout.mark and text in along:
                bits = size * _WORD_BITS // along[text] or bits
            if text == "groups" and piece.leaf in {"scales", "weight_scale"} and size:
                group = None if size == 1 else spec.in_features // size
    return Grid(bits, group, grid.symmetric)


def check_group(spec: ModuleSpec, grid: Grid) -> None:
    """The group divides the layer's inputs, which formats allow not to and vLLM demands."""
    if grid.group_size is not None and spec.in_features % grid.group_size:
        raise BaseError(
            f"'{spec.name}' has {spec.in_features} inputs, which groups of {grid.group_size} do "
            "not divide: vLLM serves no such layer; quantize the model again with a group size "
            "that divides them"
        )


def _sizes(spec: ModuleSpec, layout: Layout, grid: Grid) -> dict[str, int]:
    inputs, outputs = spec.in_features, spec.out_features
    sizes = {
        "in": inputs,
        "out": outputs,
        "groups": 1 if grid.group_size is None else inputs // grid.group_size,
        "in*out/2": -(-inputs * outputs // 2),
    }
    if layout.packed is not None:
        per_word = _WORD_BITS // grid.bits
        if sizes[layout.packed] % per_word:
            raise BaseError(
                f"'{spec.name}' has {sizes[layout.packed]} {layout.packed}puts, which are no "
                f"multiple of {per_word}: {layout.title} cannot pack them at {grid.bits} bits"
            )
        sizes["in/p"] = inputs // per_word
        sizes["out/p"] = outputs // per_word
    return sizes


def _size(text: str, sizes: Mapping[str, int]) -> int:
    return int(text) if text.isdecimal() else sizes[text]


def _said(spec: ModuleSpec, grid: Grid) -> str:
    group = "" if grid.group_size is None else f" in groups of {grid.group_size}"
    return f"{spec.in_features} inputs and {spec.out_features} outputs at {grid.bits} bits{group}"
