"""What is asked of a quantizer against the model and against what vLLM serves: before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapters.errors import UsageError
from adapters.jobs.orders import QuantizeOptions
from quantize.quantizers.recipe import Recipe
from quantize.quantizers.table import Quantizer

Shapes = Mapping[str, tuple[int, ...]]

_MODULES = re.compile(r"(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)\.weight")
_EXPERTS = re.compile(r"\.experts?\.|\.block_sparse_moe\.")


def check(
    config: Mapping[str, Any], tensors: Shapes, options: QuantizeOptions, quantizer: Quantizer
) -> Recipe:
    """The recipe of a run on the model with this config.json and these parameters.

    `tensors` are its stored parameters' shapes, [out, in] for linear modules. Raises UsageError
    that says what would fit.
    """
    linears = linear_modules(config, tensors, quantizer)
    symmetric = _symmetric(options, quantizer)
    for name, (outputs, inputs) in linears.items():
        for size, multiple, what in (
            (inputs, quantizer.inputs, "inputs"),
            (outputs, quantizer.outputs, "outputs"),
        ):
            if size % multiple:
                raise UsageError(
                    f"'{name}' has {size} {what}, and {quantizer.name} takes multiples of "
                    f"{multiple} only: give --requantize none or another quantizer"
                )
    group_size, notes = _group_size(options, quantizer, linears)
    return Recipe(
        quantizer=quantizer.name,
        method=(symmetric and quantizer.symmetric_method) or quantizer.method,
        bits=quantizer.bits,
        group_size=group_size,
        symmetric=symmetric,
        iterations=quantizer.iterations,
        layers=len({_layer_of(name) for name in linears}),
        modules=len(linears),
        notes=notes,
    )


def linear_modules(
    config: Mapping[str, Any], tensors: Shapes, quantizer: Quantizer
) -> dict[str, tuple[int, int]]:
    """The linear modules of the decoder layers: path -> (outputs, inputs). Raises UsageError."""
    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise UsageError(
            "the model is quantized already: take the original 16-bit one, a second rounding only "
            "loses more"
        )
    if any(_EXPERTS.search(name) for name in tensors):
        raise UsageError(
            f"this is a mixture of experts ({kind}), which {quantizer.name} cannot round here: "
            "give --requantize none"
        )
    if kind not in quantizer.model_types:
        raise UsageError(
            f"{quantizer.name} is not known to be right for models of type '{kind}', but for "
            f"{', '.join(quantizer.model_types)}: give --requantize none or another quantizer"
        )
    found: dict[str, tuple[int, int]] = {}
    for name, shape in tensors.items():
        place = _LAYER.search(name)
        if place is None or len(shape) < 2:
            continue
        if len(shape) != 2 or not _MODULES.fullmatch(place[2]):
            raise UsageError(
                f"{quantizer.name} does not know the module '{name.removesuffix('.weight')}' of "
                f"this '{kind}': give --requantize none"
            )
        found[name.removesuffix(".weight")] = (shape[0], shape[1])
    if not found:
        raise UsageError(f"this '{kind}' has no layers with linear modules to quantize")
    return found


def _layer_of(module: str) -> str:
    place = _LAYER.search(f"{module}.weight")
    assert place is not None, "found by it"
    return place[1]


def _symmetric(options: QuantizeOptions, quantizer: Quantizer) -> bool:
    if options.symmetric is None or options.symmetric in quantizer.symmetric:
        return quantizer.symmetric[0] if options.symmetric is None else options.symmetric
    only = "symmetric" if quantizer.symmetric[0] else "asymmetric"
    raise UsageError(
        f"vLLM serves {quantizer.name} {only} only: leave the option out, or take another quantizer"
    )


def _group_size(
    options: QuantizeOptions, quantizer: Quantizer, linears: Mapping[str, tuple[int, int]]
) -> tuple[int, tuple[str, ...]]:
    fitting = [size for size in quantizer.group_sizes if not _unfit(size, linears)]
    asked = options.group_size
    if asked is None:
        if not fitting:
            size = quantizer.group_sizes[-1]
            raise UsageError(f"{_does_not_divide(size, linears)}, nor does a larger group")
        default = quantizer.group_sizes[0]
        if fitting[0] == default:
            return default, ()
        return fitting[0], (f"groups of {fitting[0]}: {_does_not_divide(default, linears)}",)
    if asked not in quantizer.group_sizes and quantizer.group_sizes == (-1,):
        raise UsageError(
            f"{quantizer.name} has one scale for each output and no groups: leave the group size "
            "out"
        )
    if asked not in quantizer.group_sizes:
        raise UsageError(
            f"vLLM serves {quantizer.name} in groups of {_listed(quantizer.group_sizes)}, not "
            f"{asked}" + (f": give --group-size {_listed(fitting)}" if fitting else "")
        )
    if asked not in fitting:
        raise UsageError(
            _does_not_divide(asked, linears)
            + (f": give --group-size {_listed(fitting)}" if fitting else ", nor does another group")
        )
    return asked, ()


def _unfit(size: int, linears: Mapping[str, tuple[int, int]]) -> str | None:
    """The first module whose inputs groups of `size` do not divide."""
    if size == -1:
        return None
    return next((name for name, (_, inputs) in linears.items() if inputs % size), None)


def _does_not_divide(size: int, linears: Mapping[str, tuple[int, int]]) -> str:
    name = _unfit(size, linears)
    assert name is not None, "asked for the reason why it does not fit"
    return f"the {linears[name][1]} inputs of '{name}' are not divisible by {size}"


def _listed(sizes: tuple[int, ...] | list[int]) -> str:
    texts = [str(size) for size in sizes]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
