"""How far the weights of a quantized model are from those it was made of, layer by layer."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pydantic import ConfigDict

from adapters.errors import BaseError
from adapters.frozen import Frozen
from quantize.formats.reading import Checkpoint, open_checkpoint

# Alternating fits of row and column scales; two bring them within a percent, four to rest.
_FITS = 4
# A tool rescaled channels if dividing the scales out takes away at least this part of the error;
# of mere rounding it takes a hundredth.
_RESCALED = 0.2


class LayerError(Frozen):
    """One quantized layer: |W' − W| / |W| in Frobenius norms.

    AWQ and SmoothQuant multiply channels of one layer and divide those of the one before, which
    changes weights and no result. `rescaled`: this layer's were, and `error` is what remains when
    the best scales of rows and columns are divided out; `as_stored` is without that.
    """

    # Of broken weights an error is no finite number, which JSON has no other way to tell.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    module: str
    error: float
    as_stored: float
    rescaled: bool


def layer_errors(candidate: Path, reference: Path) -> tuple[LayerError, ...]:
    """The error of each quantized matrix of `candidate` against `reference`, its model in 16 or
    32 bits, in the order of the file; a candidate that is not quantized: of all its matrices.

    Memory: one matrix of either. Raises BaseError when the two are not of one architecture.
    """
    made, origin = open_checkpoint(candidate), open_checkpoint(reference)
    names = [n for n, w in made.weights.items() if w.quantized] or list(made.weights)
    return tuple(_layer(name, made, origin) for name in names if len(made.weights[name].shape) == 2)


def _layer(name: str, made: Checkpoint, origin: Checkpoint) -> LayerError:
    ours, theirs = made.weights[name], origin.weights.get(name)
    if theirs is None or theirs.shape != ours.shape:
        there = "not there" if theirs is None else f"{list(theirs.shape)}"
        raise BaseError(
            f"'{name}' is {list(ours.shape)} in {made.directory} and {there} in "
            f"{origin.directory}: the one was not made of the other"
        )
    new, old = ours.read(), theirs.read()
    size = float(torch.linalg.vector_norm(old))
    plain = _relative(new - old, size)
    fitted = _relative(_without_scales(new, old), size) if plain else 0.0
    rescaled = fitted < (1 - _RESCALED) * plain
    return LayerError(
        module=name.removesuffix(".weight"),
        error=fitted if rescaled else plain,
        as_stored=plain,
        rescaled=rescaled,
    )


def _relative(difference: torch.Tensor, size: float) -> float:
    found = float(torch.linalg.vector_norm(difference))
    if not size:
        return 0.0 if not found else math.inf
    return found / size


def _without_scales(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """new/(r·c) − old with the row scales r and column scales c that fit best (least squares of
    new against r·c·old, alternating), so that the difference has the size of `old`."""
    rows = torch.ones(old.shape[0], 1)
    columns = torch.ones(1, old.shape[1])
    for _ in range(_FITS):
        columns = _fit(new, old * rows, 0)
        rows = _fit(new, old * columns, 1)
    return new / (rows * columns) - old


def _fit(new: torch.Tensor, old: torch.Tensor, axis: int) -> torch.Tensor:
    scales = (new * old).sum(axis, keepdim=True) / (old * old).sum(axis, keepdim=True)
    # A channel of zeros, or one that came out as zeros, has no scale.
    return torch.where(scales.isfinite() & (scales.abs() > 1e-6), scales, 1.0)
