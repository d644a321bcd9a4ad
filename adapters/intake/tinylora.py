"""TinyLoRA as plain LoRA: ΔW = B·R·A, R a mixture of fixed random matrices.

A and B (of the base's own weight) are in the file. R = Σ v_i·P_i, where P [u, r, r] is in the file
or (save_projection = false) drawn anew from projection_seed plus the module's number, and v [u] is
shared by a group of modules, which weight_tying makes of their order (peft/tuners/tinylora).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import algebra, tensors
from adapters.intake.lora import LoraPlan, load_finite
from adapters.intake.mapping import strip_prefix
from adapters.intake.peft_config import LoraSettings, flag, tuner_settings, whole_number
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import (
    Factor,
    Rewrite,
    Tuner,
    check_tensor,
    plan_rewriting,
    tuned_modules,
)
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("tinylora_A", "tinylora_B", "tinylora_P")
_SHARED = "tinylora_v"


@dataclass(frozen=True, slots=True)
class _Config:
    """`seed` None: the projections are in the file. `numbers`: the targeted modules' order."""

    rank: int
    mixed: int
    seed: int | None
    numbers: Mapping[str, int]
    groups: Mapping[str, str]
    vectors: Mapping[str, Callable[[], torch.Tensor]]


def plan_tinylora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    own = {name: tensor for name, tensor in raw.tensors.items() if _group(name) is None}
    mixed = whole_number(raw.config, "u", 64, 1)
    saved = flag({"save_projection": True, **raw.config}, "save_projection")
    order = _order(replace(raw, tensors=own), settings, base)
    groups = _groups(order, _share(raw.config))
    vectors, faults = _vectors(raw.tensors, frozenset(groups.values()), mixed)
    config = _Config(
        rank=settings.rank,
        mixed=mixed,
        # PEFT takes any integer that torch's generator takes; its default is 42.
        seed=None if saved else whole_number(raw.config, "projection_seed", 42, 0),
        numbers={name: number for number, name in enumerate(order)},
        groups=groups,
        vectors=vectors,
    )
    tuner = Tuner(
        title="TinyLoRA",
        parts=_PARTS,
        settings=settings,
        scale="1",
        rewrite=partial(_rewrite, config),
        kinds=frozenset({"linear", "conv1d"}),
    )
    plan = plan_rewriting(replace(raw, tensors=own), base, tuner)
    return replace(plan, problems=(*plan.problems, *faults))


def _rewrite(config: _Config, spec: ModuleSpec) -> Rewrite:
    # PEFT caps the rank without a word.
    rank = min(config.rank, spec.in_features, spec.out_features)
    vector = config.vectors.get(config.groups.get(spec.name, ""))
    shapes: dict[str, tuple[int, ...]] = {
        "tinylora_A": (rank, spec.in_features),
        "tinylora_B": (spec.out_features, rank),
    }
    if config.seed is None:
        shapes["tinylora_P"] = (config.mixed, rank, rank)
        b = Factor(("tinylora_B", "tinylora_P"), partial(_b, vector))
    else:
        seed = config.seed + config.numbers.get(spec.name, 0)
        draw = partial(algebra.normal, (config.mixed, rank, rank), 1.0 / rank**0.5, seed)
        b = Factor(("tinylora_B",), partial(_b_drawn, vector, draw))
    return Rewrite(rank=rank, shapes=shapes, a=Factor(("tinylora_A",), _same), b=b)


def _same(a: torch.Tensor) -> torch.Tensor:
    return a


def _b(
    vector: Callable[[], torch.Tensor] | None, b: torch.Tensor, matrices: torch.Tensor
) -> torch.Tensor:
    assert vector is not None, "a plan with problems is not read"
    return b @ (tensors.wide(vector())[:, None, None] * matrices).sum(0)


def _b_drawn(
    vector: Callable[[], torch.Tensor] | None, draw: Callable[[], torch.Tensor], b: torch.Tensor
) -> torch.Tensor:
    return _b(vector, b, tensors.wide(draw()))


def _order(raw: RawAdapter, settings: LoraSettings, base: BaseDescriptor) -> list[str]:
    """The targeted modules in the model's order, which numbers them."""
    targeted = settings.targeted(base.modules)
    if targeted is None:
        targeted = frozenset(tuned_modules(raw, _PARTS))
    return [spec.name for spec in base.modules if spec.name in targeted]


def _share(config: Mapping[str, Any]) -> float:
    value = config.get("weight_tying", 0.0)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InvalidConfig(
            f"adapter_config.json: weight_tying is {reprlib.repr(value)}; it is a number from 0 to "
            "1"
        )
    return float(value)


def _groups(order: list[str], share: float) -> dict[str, str]:
    """Module -> its group's name (peft/tuners/tinylora/model.py, _create_and_replace)."""
    count = max(1, round(len(order) * (1.0 - share)))
    size = max(1, len(order) // count)
    return {name: str(min(number // size, count - 1)) for number, name in enumerate(order)}


def _group(name: str) -> str | None:
    """The group whose v a tensor is: `base_model.tinylora_v.0`."""
    stem, _, group = strip_prefix(name).removeprefix("base_model.").partition(".")
    return group if stem == _SHARED else None


def _vectors(
    found: Mapping[str, LazyTensor], groups: frozenset[str], mixed: int
) -> tuple[dict[str, Callable[[], torch.Tensor]], list[ArtifactError]]:
    by_group = {g: tensor for name, tensor in found.items() if (g := _group(name)) is not None}
    faults: list[ArtifactError] = []
    missing = sorted(groups - by_group.keys())
    extra = sorted(by_group.keys() - groups)
    if extra:
        faults.append(
            InvalidConfig(
                f"tensor '{by_group[extra[0]].name}' is of a group of modules that "
                f"adapter_config.json does not make; by weight_tying there are {len(groups)}"
            )
        )
    elif missing:
        faults.append(
            DamagedArtifact(
                f"the file has no {_SHARED}.{missing[0]}, which a group of modules shares"
            )
        )
    checks = (check_tensor(tensor, (mixed,)) for tensor in by_group.values())
    faults.extend(fault for fault in checks if fault is not None)
    return {g: cache(partial(load_finite, tensor)) for g, tensor in by_group.items()}, faults
