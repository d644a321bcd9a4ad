"""The base's values as the merge sees them, whole or some rows at a time."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from adapters.bases.headers import TensorInfo
from adapters.errors import ArtifactError, BaseError
from adapters.intake import tensors
from quantize.merging.layout import Place, Rows

if TYPE_CHECKING:
    import torch


def grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """The first axis and the size of one of its rows."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def opened(place: Place, name: str) -> Rows:
    """Gives rows of the parameter, as far as there are any, in the dtype in which to compute."""
    if place.made is not None:
        return place.made.open()
    return partial(read_rows, place, name)


def read_whole(place: Place | None, name: str) -> torch.Tensor:
    """The parameter in the dtype in which to compute; raises BaseError if there is none."""
    if place is None:
        raise BaseError(f"the base keeps no '{name}', which the adapter changes")
    if place.made is not None:
        return place.made.open()(0, place.info.shape[0]).reshape(place.info.shape)
    return tensors.computed_in(_read(place, name, place.info))


def read_rows(place: Place, name: str, start: int, end: int) -> torch.Tensor:
    """Rows [start, end) of what lies at `place`, as a matrix, as far as there are any."""
    info = place.info
    rows, width = grid(info.shape)
    start, end = min(start, rows), min(end, rows)
    size = (info.end - info.start) // max(1, rows)
    cut = TensorInfo(
        info.dtype, (end - start, width), info.start + start * size, info.start + end * size
    )
    return tensors.computed_in(_read(place, name, cut))


def _read(place: Place, name: str, info: TensorInfo) -> torch.Tensor:
    try:
        return tensors.read_tensor(place.path, name, info)
    except ArtifactError as fault:
        raise BaseError(fault.message) from None
