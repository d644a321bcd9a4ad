"""What a LoRA on experts does to the base's weights, in the layout in which the base has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adapters.intake.expert_stacks import matrix
from adapters.intake.lora import LoraPair
from adapters.intake.merging import Edit, edits_of_pairs
from adapters.intake.raw import LazyTensor
from adapters.models import ExpertsSpec, ModuleSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Place:
    """Where an expert's matrix lies in its layer's stack."""

    spec: ExpertsSpec
    expert: int
    leaf: str

    @property
    def parameter(self) -> str:
        leaf = "down_proj" if self.leaf == self.spec.down else "gate_up_proj"
        return f"{self.spec.stored}.{leaf}"

    @property
    def shape(self) -> tuple[int, int, int]:
        spec = self.spec
        if self.leaf == spec.down:
            return spec.count, spec.hidden, spec.inner
        return spec.count, 2 * spec.inner, spec.hidden

    @property
    def rows(self) -> slice:
        spec = self.spec
        if self.leaf == spec.down:
            return slice(0, spec.hidden)
        first = 0 if self.leaf == spec.gate else spec.inner
        return slice(first, first + spec.inner)


def matrices(layers: Iterable[ExpertsSpec]) -> Iterator[tuple[ModuleSpec, Place]]:
    """Every expert's matrices as modules of the base, and where each lies."""
    for spec in layers:
        for leaf in (spec.gate, spec.up, spec.down):
            for expert in range(spec.count):
                yield matrix(spec, expert, leaf), Place(spec, expert, leaf)


def edits_with_experts(
    pairs: Sequence[LoraPair], layers: Iterable[ExpertsSpec]
) -> tuple[Edit, ...]:
    """Plain LoRA as edits, that on experts among it; a stacked parameter has one edit."""
    fused = {
        module.name: place for module, place in matrices(spec for spec in layers if spec.fused)
    }
    stacks: dict[str, list[tuple[Place, LoraPair]]] = {}
    for pair in pairs:
        place = fused.get(pair.module.name)
        if place is not None:
            stacks.setdefault(place.parameter, []).append((place, pair))
    plain = edits_of_pairs([pair for pair in pairs if pair.module.name not in fused])
    return (*plain, *(_stack_edit(parts) for parts in stacks.values()))


def _stack_edit(parts: Sequence[tuple[Place, LoraPair]]) -> Edit:
    first = parts[0][0]
    places = tuple((place.expert, place.rows) for place, _ in parts)
    return Edit(
        parameter=first.parameter,
        shape=first.shape,
        inputs=tuple(half for _, pair in parts for half in _halves(pair)),
        apply=partial(_add_each, places, slice(0, first.shape[0])),
        reads=first.parameter,
        module=first.spec.stored,
        by_rows=partial(_add_each, places),
    )


def _halves(pair: LoraPair) -> tuple[LazyTensor, LazyTensor]:
    spec = pair.module
    return (
        LazyTensor(pair.a_name, "F64", (pair.rank, spec.in_features), pair.load_a),
        LazyTensor(pair.b_name, "F64", (spec.out_features, pair.rank), pair.load_b),
    )


def _add_each(
    places: Sequence[tuple[int, slice]],
    experts: slice,
    old: torch.Tensor,
    *halves: torch.Tensor,
) -> torch.Tensor:
    """`old` are the matrices of `experts`; `halves` are A and B of each place in turn."""
    new = old.clone()
    for index, (expert, rows) in enumerate(places):
        if experts.start <= expert < experts.stop:
            a, b = halves[2 * index : 2 * index + 2]
            new[expert - experts.start, rows] += b @ a
    return new
