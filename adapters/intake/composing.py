"""Several versions of one base as one plain LoRA: exact sums, TIES and DARE.

A weighted sum of low-rank products is one of all their ranks together: A = [A1; A2; …],
B = [w1·B1, w2·B2, …]. (Adding A to A and B to B, as PEFT's `linear` does, has the cross terms
B1·A2 in it and is another adapter altogether.) Everything else, a smaller rank, TIES and DARE, is
made from each module's whole change and cut back to a rank, and says what that cost.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.compositions import Component, CompositionMethod, Recipe, formula
from adapters.errors import StoreDamaged, UsageError
from adapters.frozen import Lane
from adapters.intake import mixing, tensors
from adapters.intake.canonical import keep, prove, write_canonical
from adapters.intake.formats import read_artifact
from adapters.intake.lora import LoraPair, plan_lora
from adapters.intake.mapping import leaf_names
from adapters.intake.peft_config import MAX_RANK
from adapters.models import BaseDescriptor, Manifest, ModuleSpec, Origin

if TYPE_CHECKING:
    import torch

# Far above fp64's 2e-16 and far below what fp32 factors can mean.
_ROUNDING = 1e-12
Progress = Callable[[int, int], None]
Weighted = tuple[float, LoraPair]


@dataclass(frozen=True, slots=True)
class _Result:
    """A module's pair, and the squares of its change and of what the rank cut off from it."""

    pair: LoraPair
    energy: float
    lost: float


def compose_into(
    staging: Path,
    components: Sequence[tuple[Component, Path]],
    recipe: Recipe,
    *,
    base: BaseDescriptor,
    progress: Progress | None = None,
) -> Manifest:
    """Write the canonical form of the composition of stored versions into `staging`.

    `progress` is called with modules done and in all. Raises StoreDamaged for a component that
    is no sound canonical form, UsageError when the ranks do not fit or nothing is left.
    """
    modules = _by_module(components, base)
    rank = _rank(modules, recipe)
    exact = recipe.method is CompositionMethod.SUM and recipe.rank is None
    results: list[_Result] = []
    for done, (spec, parts) in enumerate(modules):
        if progress is not None:
            progress(done, len(modules))
        result = _summed(spec, parts) if exact else _cut(spec, parts, recipe, rank)
        if result is not None:
            results.append(result)
    proved = [keep(result.pair, prove(result.pair, base.dtype), hold=False) for result in results]
    if not any(item.effective for item in proved):
        raise UsageError(
            f"{formula(c for c, _ in components)} has no effect: the parts cancel each other"
        )
    write_canonical(proved, staging, lambda _: None)
    if progress is not None:
        progress(len(modules), len(modules))
    return _manifest([c for c, _ in components], recipe, results, base, exact=exact)


def _by_module(
    components: Sequence[tuple[Component, Path]], base: BaseDescriptor
) -> list[tuple[ModuleSpec, list[Weighted]]]:
    found: dict[str, tuple[ModuleSpec, list[Weighted]]] = {}
    for component, directory in components:
        plan = plan_lora(read_artifact(directory, "peft"), base)
        if plan.problems:
            raise StoreDamaged(
                f"what the store holds of {component.label} is no sound adapter any more "
                f"({plan.problems[0].message}); run 'adapterctl verify'"
            )
        for pair in plan.pairs:
            entry = found.setdefault(pair.module.name, (pair.module, []))
            entry[1].append((component.weight, pair))
    return [found[name] for name in sorted(found)]


def _rank(modules: Sequence[tuple[ModuleSpec, list[Weighted]]], recipe: Recipe) -> int:
    """The rank that no module exceeds."""
    together = max(sum(pair.rank for _, pair in parts) for _, parts in modules)
    if recipe.rank is not None:
        return recipe.rank
    if together > MAX_RANK and recipe.method is CompositionMethod.SUM:
        raise UsageError(
            f"the exact sum has rank {together}, and engines take ranks up to {MAX_RANK}: "
            f"give --rank, at most {MAX_RANK}, for the nearest adapter of that rank"
        )
    return min(together, MAX_RANK)


def _summed(spec: ModuleSpec, parts: Sequence[Weighted]) -> _Result:
    """The exact sum; nothing of it is kept in memory."""

    def load_a() -> torch.Tensor:
        return tensors.stacked([pair.load_a() for _, pair in parts], 0)

    def load_b() -> torch.Tensor:
        return tensors.stacked([tensors.fold(pair.load_b(), w) for w, pair in parts], 1)

    rank = sum(pair.rank for _, pair in parts)
    pair = replace(parts[0][1], module=spec, rank=rank, load_a=load_a, load_b=load_b)
    return _Result(pair, energy=0.0, lost=0.0)


def _cut(spec: ModuleSpec, parts: Sequence[Weighted], recipe: Recipe, rank: int) -> _Result | None:
    """The nearest product of that rank to the module's change (Eckart and Young, 1936).

    None if nothing is left of the change.
    """
    if recipe.method is CompositionMethod.SUM:
        loaded = [(weight, *_factors(pair)) for weight, pair in parts]
        b, a, values = mixing.nearest_of_product(
            tensors.stacked([weight * b for weight, b, _ in loaded], 1),
            tensors.stacked([a for _, _, a in loaded], 0),
        )
    else:
        b, a, values = mixing.split(_thinned(spec, parts, recipe))
    # What is left where parts cancel each other is the rounding of fp64.
    noise = _ROUNDING * sum(abs(weight) * mixing.size(*_factors(pair)) for weight, pair in parts)
    squares = [value * value if value > noise else 0.0 for value in values]
    # A rank that adds nothing would only make every slot larger.
    kept = min(rank, sum(square > 0 for square in squares))
    if kept == 0:
        return None
    pair = replace(
        parts[0][1],
        module=spec,
        rank=kept,
        load_a=partial(_held, tensors.stored(a[:kept], None)),
        load_b=partial(_held, tensors.stored(b[:, :kept], None)),
    )
    return _Result(pair, energy=math.fsum(squares), lost=math.fsum(squares[kept:]))


def _factors(pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A) in fp64."""
    return tensors.wide(pair.load_b()), tensors.wide(pair.load_a())


def _held(values: torch.Tensor) -> torch.Tensor:
    return values


def _thinned(spec: ModuleSpec, parts: Sequence[Weighted], recipe: Recipe) -> torch.Tensor:
    """[out, in]: the changes, each thinned out, put together."""
    changes = [b @ a for b, a in (_factors(pair) for _, pair in parts)]
    weights = [weight for weight, _ in parts]
    if recipe.method is CompositionMethod.TIES:
        return mixing.ties(changes, weights, recipe.density)
    # Each module draws its own, so that adding a module does not change the others.
    seed = int.from_bytes(hashlib.sha256(f"{recipe.seed} {spec.name}".encode()).digest()[:7], "big")
    return mixing.dare(changes, weights, recipe.density, tensors.generator(seed))


def _manifest(
    components: Sequence[Component],
    recipe: Recipe,
    results: Sequence[_Result],
    base: BaseDescriptor,
    *,
    exact: bool,
) -> Manifest:
    source = {
        "parts": [[c.digest, c.weight] for c in components],
        **recipe.model_dump(mode="json"),
    }
    pairs = [result.pair for result in results]
    return Manifest(
        format="composition",
        method=f"{recipe.method.value}-composition",
        lane=Lane.HOT,
        reasons=_reasons(components, recipe, results, exact=exact),
        rank=max(pair.rank for pair in pairs),
        targets=leaf_names(pair.module.name for pair in pairs),
        parameters=sum(pair.parameters for pair in pairs),
        scale=formula(components),
        base_digest=base.digest,
        base_by_trainer=None,
        trainer="adapterctl",
        trainer_version=None,
        source=formula(components),
        source_sha256=hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest(),
        composed_from=tuple(
            Origin(reference=c.label, digest=c.digest, weight=c.weight) for c in components
        ),
    )


def _reasons(
    components: Sequence[Component], recipe: Recipe, results: Sequence[_Result], *, exact: bool
) -> tuple[str, ...]:
    if exact:
        return (f"the exact sum {formula(components)}: the ranks of its parts are added up",)
    how = {
        CompositionMethod.SUM: "the sum",
        CompositionMethod.TIES: f"TIES (density {recipe.density:g}) of",
        CompositionMethod.DARE: f"DARE (density {recipe.density:g}, seed {recipe.seed}) of",
    }[recipe.method]
    worst = max(results, key=lambda result: _relative(result.lost, result.energy))
    error = _relative(math.fsum(r.lost for r in results), math.fsum(r.energy for r in results))
    rank = max(result.pair.rank for result in results)
    return (
        f"{how} {formula(components)}, cut to rank {rank}: approximate, relative error {error:.2g} "
        f"overall and {_relative(worst.lost, worst.energy):.2g} at worst, in "
        f"'{worst.pair.module.name}'",
    )


def _relative(lost: float, energy: float) -> float:
    """‖D − B·A‖ / ‖D‖, Frobenius, from the squares."""
    return math.sqrt(lost / energy) if energy > 0 else 0.0
