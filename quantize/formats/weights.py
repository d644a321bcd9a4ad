"""What every reader of a quantized checkpoint gives: the parameters of the 16-bit model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapters.errors import BaseError
from adapters.intake.raw import LazyTensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter by the name that the 16-bit model has for it, in its layout.

    A linear layer's weight is [out, in]. `read()` gives it in fp32; nothing is kept.
    """

    name: str
    shape: tuple[int, ...]
    quantized: bool
    read: Callable[[], torch.Tensor]


Tensors = dict[str, LazyTensor]
# Takes the tensors it knows out of `tensors` and gives the weights that they stand for; `config`
# is the quantization_config of the checkpoint. Raises BaseError.
Reader = Callable[[Tensors, Mapping[str, Any]], Iterable[Weight]]


def modules_with(tensors: Mapping[str, LazyTensor], leaf: str) -> list[str]:
    """The modules that have a tensor `leaf`, in the order of the file."""
    ending = f".{leaf}"
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def take(tensors: Tensors, name: str) -> LazyTensor:
    """The tensor, out of `tensors`; raises BaseError when it is not there."""
    found = tensors.pop(name, None)
    if found is None:
        raise BaseError(f"the quantized checkpoint lacks '{name}': it is incomplete")
    return found


def whole_number(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A count from the quantization_config; raises BaseError for anything else."""
    value = config.get(key, default)
    if type(value) is not int:
        raise BaseError(f"the quantization_config's '{key}' is {value!r}, not a whole number")
    return value


def expect(tensor: LazyTensor, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Raises BaseError unless the tensor is what its quantization says it must be."""
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise BaseError(
            f"'{tensor.name}' is {tensor.dtype} {list(tensor.shape)}; by the quantization_config "
            f"it must be {' or '.join(dtypes)} {list(shape)}"
        )
