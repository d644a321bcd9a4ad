"""What a merge does to the base's weights: one `Edit` a parameter, all that the merged lane needs.

A method that no plain LoRA expresses is planned as a `MergePlan`: checked tensor by tensor from
headers alone, like a `LoraPlan`, and carried out later, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import ArtifactError
from adapters.intake.lora import LoraPair, load_finite
from adapters.intake.raw import LazyTensor
from adapters.models import ModuleSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Edit:
    """One parameter of the base becomes another.

    `apply(old, *inputs)` gives the new value in `old`'s dtype (fp32 in a merge, fp64 in proofs);
    the inputs come in the same dtype. `old` is the base's parameter `reads`; with None there is
    none and it is `apply(*inputs)`. Edits of one parameter are applied one after the other, each
    on the result of the one before. `module` names the module for messages.

    `by_rows(rows, old, *inputs)` gives the same for a slice of the parameter's first axis alone,
    `old` being those rows, so that a merge need not hold the whole; None: only the whole will do.

    `added` not None: it is old + added·b·a, and `inputs` are (a, b), so that a merge need
    not go the long way.
    """

    parameter: str
    shape: tuple[int, ...]
    inputs: tuple[LazyTensor, ...]
    apply: Callable[..., torch.Tensor]
    reads: str | None
    module: str
    by_rows: Callable[..., torch.Tensor] | None = None
    added: float | None = None


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What the merge will do, or why not; `edits` holds what is right even beside problems.

    `uses` are the artifact's tensors by their name in the stored form (PEFT's, with its prefix and
    without an adapter's name in it); `config` is its config reduced to what changes the result.
    `base_config` are keys of the base's config.json that the merged model has otherwise.
    """

    edits: tuple[Edit, ...]
    uses: Mapping[str, LazyTensor]
    config: Mapping[str, Any]
    problems: tuple[ArtifactError, ...]
    notes: tuple[str, ...]
    reason: str
    scale: str = ""
    # The rank of its LoRA part, or of what stands for a rank in the method; None without one.
    rank: int | None = None
    # Full copies of base weights to compare before anything is written.
    copies: tuple[Callable[[], None], ...] = ()
    base_config: Mapping[str, Any] = field(default_factory=dict)
    # Tokenizer files that take the place of the base's.
    files: tuple[Path, ...] = ()
    # Said after `reason`, which is the method's.
    more: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(tensor.count for tensor in self.uses.values())


def carried_out(edits: Sequence[Edit], read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A parameter after all its `edits`, in their order.

    `read` gives a parameter of the base, in the dtype in which to compute. An edit that reads its
    own parameter sees what the one before it left; one that reads another sees the base's.
    """
    value: torch.Tensor | None = None
    for edit in edits:
        inputs: list[torch.Tensor] = []
        if edit.reads is not None:
            again = value is not None and edit.reads == edit.parameter
            old = value if again and value is not None else read(edit.reads)
            inputs = [load_finite(tensor).to(old.dtype) for tensor in edit.inputs]
            value = edit.apply(old, *inputs)
        else:
            value = edit.apply(*(load_finite(tensor) for tensor in edit.inputs))
    assert value is not None, "a parameter has at least one edit"
    return value


def edits_of_pairs(pairs: Sequence[LoraPair]) -> tuple[Edit, ...]:
    """Plain LoRA as edits: W + B·A, in the layout in which the base keeps W."""
    return tuple(_edit(pair) for pair in pairs)


def weight_of(spec: ModuleSpec) -> tuple[str, tuple[int, int]]:
    """The module's weight in the checkpoint: its name and shape."""
    shape = (spec.out_features, spec.in_features)
    return f"{spec.name}.weight", shape if spec.kind == "linear" else shape[::-1]


def _edit(pair: LoraPair) -> Edit:
    spec = pair.module
    name, shape = weight_of(spec)
    a = LazyTensor(pair.a_name, "F64", (pair.rank, spec.in_features), pair.load_a)
    b = LazyTensor(pair.b_name, "F64", (spec.out_features, pair.rank), pair.load_b)
    return Edit(
        parameter=name,
        shape=shape,
        inputs=(a, b),
        apply=partial(_add_product, spec.kind != "linear"),
        reads=name,
        module=spec.name,
        by_rows=partial(_add_rows, spec.kind != "linear"),
        added=1.0 if spec.kind == "linear" else None,
    )


def _add_product(turned: bool, old: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    delta = b @ a
    return old + (delta.T if turned else delta)


def _add_rows(
    turned: bool, rows: slice, old: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    return old + ((b @ a[:, rows]).T if turned else b[rows] @ a)
