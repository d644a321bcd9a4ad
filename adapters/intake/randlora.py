"""RandLoRA: ΔW = alpha/r · B·(λ ⊙ A ⊙ γ), over random bases A and B that all modules share.

A [r, 1, smaller] and B [larger, n, r] belong to the smaller and larger side of a module; each
takes its part of them. The product runs over pairs of a base and a rank, which PEFT counts rank
first in A and base first in B; trained that way, it is what the adapter means
(peft/tuners/randlora/layer.py, get_scaled_bases). PEFT saves A and B at the top and once more
beside every module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, NotServable
from adapters.intake.lora import load_finite
from adapters.intake.mapping import strip_prefix
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import LoraSettings, finite_number, flag, tuner_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import check_tensor
from adapters.intake.rules import LINEAR_OR_CONV1D, Change, Rule, RuleTuner, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_OWN = ("randlora_lambda", "randlora_gamma")
_SHARED = ("randlora_A", "randlora_B")
_Load = Callable[[], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class _RandLora:
    """The checked config, and the shared A and B, which are read once while the plan lives."""

    rank: int
    scale: float
    a: _Load
    b: _Load


def plan_randlora(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    alpha = finite_number(raw.config, "randlora_alpha", 640)
    if raw.config.get("save_projection") is not None and not flag(raw.config, "save_projection"):
        raise NotServable(
            "adapter_config.json: save_projection is false, so the random bases were not saved; "
            "PEFT draws them anew (all but the sparse ones in a precision that depends on the "
            "machine): save the adapter with save_projection = true where it was trained"
        )
    own, shared, repeated = _sorted(raw)
    faults = _faults(shared, settings, own, base)
    a, b = (_loader(shared.get(name)) for name in _SHARED)
    randlora = _RandLora(settings.rank, alpha / settings.rank, a, b)
    tuner = RuleTuner(
        title="RandLoRA",
        parts=_OWN,
        settings=settings,
        rule=partial(_rule, randlora),
        config=lambda modules: {
            "r": settings.rank,
            "randlora_alpha": alpha,
            "save_projection": True,
        },
        kinds=LINEAR_OR_CONV1D,
        scale=f"alpha/r = {alpha:g}/{settings.rank} = {alpha / settings.rank:g}",
        rank=settings.rank,
        shared={f"base_model.{name}": tensor for name, tensor in shared.items()},
    )
    plan = plan_rules(replace(raw, tensors=own), base, tuner)
    compares = tuple(
        partial(_compare, one, shared[name]) for name, one in repeated if name in shared
    )
    return replace(plan, problems=plan.problems + faults, copies=plan.copies + compares)


def _rule(randlora: _RandLora, spec: ModuleSpec) -> Rule:
    smaller = min(spec.in_features, spec.out_features)
    bases = -(-smaller // randlora.rank)
    return Rule(
        {"randlora_lambda": (randlora.rank, bases), "randlora_gamma": (bases, smaller)},
        {"weight": Change(_OWN, partial(_added, randlora))},
    )


def _added(
    randlora: _RandLora, old: torch.Tensor, weights: torch.Tensor, gamma: torch.Tensor
) -> torch.Tensor:
    bases, smaller = gamma.shape
    a = randlora.a()[:, :, :smaller].to(old.dtype)
    b = randlora.b()[: max(old.shape), :bases].to(old.dtype)
    scaled = weights[:, :, None] * a * gamma
    delta = b.flatten(1) @ scaled.flatten(0, 1)
    return old + (delta if smaller == old.shape[1] else delta.T) * randlora.scale


def _sorted(
    raw: RawAdapter,
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], list[tuple[str, LazyTensor]]]:
    """The modules' own tensors, the shared A and B, and what repeats them beside a module."""
    own: dict[str, LazyTensor] = {}
    shared: dict[str, LazyTensor] = {}
    repeated: list[tuple[str, LazyTensor]] = []
    for name, tensor in raw.tensors.items():
        stem = strip_prefix(name).removeprefix("base_model.")
        if stem.partition(".")[0] in _SHARED:
            part = stem.partition(".")[0]
            if part in shared:
                raise DamagedArtifact(f"'{shared[part].name}' and '{name}' are both {part}")
            shared[part] = replace(tensor, load=partial(load_finite, tensor))
        elif (again := next((part for part in _SHARED if f".{part}" in stem), None)) is not None:
            repeated.append((again, tensor))
        else:
            own[name] = tensor
    return own, shared, repeated


def _faults(
    shared: Mapping[str, LazyTensor],
    settings: LoraSettings,
    own: Mapping[str, LazyTensor],
    base: BaseDescriptor,
) -> tuple[ArtifactError, ...]:
    """A and B must be as large as the largest targeted sides (peft, RandLoraModel._find_dim)."""
    targeted = settings.targeted(base.modules)
    if targeted is None:
        targeted = frozenset(strip_prefix(name).partition(".randlora_")[0] for name in own)
    specs = [s for s in base.modules if s.name in targeted and s.kind in LINEAR_OR_CONV1D]
    inputs = max((spec.in_features for spec in specs), default=0)
    outputs = max((spec.out_features for spec in specs), default=0)
    smaller, larger = sorted((inputs, outputs))
    rank = settings.rank
    shapes = {"randlora_A": (rank, 1, smaller), "randlora_B": (larger, -(-smaller // rank), rank)}
    faults: list[ArtifactError] = []
    for name, shape in shapes.items():
        if name not in shared:
            faults.append(
                DamagedArtifact(f"the file has no {name}, the random bases that all modules share")
            )
        elif (fault := check_tensor(shared[name], shape)) is not None:
            faults.append(fault)
    return tuple(faults)


def _loader(tensor: LazyTensor | None) -> _Load:
    return _never if tensor is None else cache(tensor.load)


def _never() -> torch.Tensor:
    raise AssertionError("a plan with problems is not carried out")


def _compare(one: LazyTensor, shared: LazyTensor) -> None:
    """PEFT reads every copy into one place, so only with equal ones it is clear what it means."""
    values = one.load()
    if values.shape != shared.shape or bool((values != shared.load()).any()):
        raise DamagedArtifact(
            f"tensor '{one.name}' is another than '{shared.name}', although all modules share one"
        )
