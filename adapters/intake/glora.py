"""GLoRA: W' = W + W ⊙ A + B and b' = b + b ⊙ D + E + W·C, where each of A to E is a product of two
factors, a vector, a number or nothing (peft/tuners/glora/layer.py, merge).

For what is nothing PEFT saves zeros of full size; they are checked and left out.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.bases.weights import BaseWeights
from adapters.errors import DamagedArtifact, InvalidConfig, NotServable
from adapters.intake import tensors
from adapters.intake.lora import FLOATS
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import tuner_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, has_bias, plan_rules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = tuple(f"glora_{path}.{leaf}" for path in "ABCDE" for leaf in ("Xd", "Xu", "X"))
# What each key may say, its default first.
_KEYS = {
    "config_A_B": ("lora", "vector", "constant", "none"),
    "config_C": ("lora", "vector", "none"),
    "config_D_E": ("constant", "vector", "none"),
}


@dataclass(frozen=True, slots=True)
class _Glora:
    rank: int
    config: Mapping[str, str]
    base: BaseDescriptor


def plan_glora(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    config = {key: _kind(raw.config, key) for key in _KEYS}
    glora = _Glora(settings.rank, config, base)
    own, zeros = {}, []
    for name, tensor in raw.tensors.items():
        if ".glora_" in name and name.endswith(".zeros"):
            zeros.append(tensor)
        else:
            own[name] = tensor
    tuner = RuleTuner(
        title="GLoRA",
        parts=_PARTS,
        settings=settings,
        rule=partial(_rule, glora),
        config=lambda modules: {"r": settings.rank, **config},
        scale="1",
        rank=settings.rank,
    )
    plan = plan_rules(replace(raw, tensors=own), base, tuner)
    return replace(plan, copies=plan.copies + tuple(partial(_nothing, one) for one in zeros))


def _rule(glora: _Glora, spec: ModuleSpec) -> Rule:
    a, b = (_shapes(glora, path, "config_A_B", spec) for path in "AB")
    if not has_bias(glora.base, spec):
        if not a:
            raise InvalidConfig(
                f"adapter_config.json: config_A_B is 'none', so nothing of '{spec.name}' changes"
            )
        return Rule({**a, **b}, {"weight": Change((*a, *b), partial(_weight, len(a)))})
    c = _shapes(glora, "C", "config_C", spec)
    d, e = (_shapes(glora, path, "config_D_E", spec) for path in "DE")
    changes = {}
    if a:
        changes["weight"] = Change((*a, *b), partial(_weight, len(a)))
    if c or d:
        weight = _weight_of_base(glora.base, spec) if c else None
        changes["bias"] = Change((*c, *d, *e), partial(_bias, weight, len(c)))
    return Rule({**a, **b, **c, **d, **e}, changes)


def _shapes(glora: _Glora, path: str, key: str, spec: ModuleSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of A, B (as wide as the weight), C (a column of inputs), D or E (the bias)."""
    kind, name = glora.config[key], f"glora_{path}"
    rows = spec.in_features if path == "C" else spec.out_features
    if kind == "lora":
        columns = 1 if path == "C" else spec.in_features
        return {f"{name}.Xd": (rows, glora.rank), f"{name}.Xu": (glora.rank, columns)}
    if kind == "vector":
        return {f"{name}.X": (rows,) if path in "DE" else (rows, 1)}
    return {f"{name}.X": (1,)} if kind == "constant" else {}


def _weight(count: int, old: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
    """`count` parts are A's, the others B's."""
    return old + old * _product(parts[:count]) + _product(parts[count:])


def _bias(
    weight: Callable[[], torch.Tensor] | None,
    count: int,
    old: torch.Tensor,
    *parts: torch.Tensor,
) -> torch.Tensor:
    """`count` parts are C's; D and E follow if there are more."""
    new = old
    if len(parts) > count:
        new = new + old * parts[count] + parts[count + 1]
    if weight is None:
        return new
    return new + (weight().to(old.dtype) @ _product(parts[:count])).reshape(-1)


def _product(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return parts[0] @ parts[1] if len(parts) == 2 else parts[0]


def _weight_of_base(base: BaseDescriptor, spec: ModuleSpec) -> Callable[[], torch.Tensor]:
    """The module's weight as it is before the merge, of which the new bias depends."""
    if base.directory is None:
        raise NotServable(
            f"GLoRA's change of the bias of '{spec.name}' depends on the base's own weights, which "
            "are not at hand"
        )
    return partial(_read, BaseWeights(base, Path(base.directory)), spec.name)


def _read(weights: BaseWeights, module: str) -> torch.Tensor:
    place = weights.place(module)
    if place is None or place[1].dtype not in FLOATS:
        found = "is not stored by that name" if place is None else f"is {place[1].dtype}"
        raise NotServable(
            f"the base's weight of '{module}' {found}, and GLoRA's change of its bias depends on it"
        )
    return tensors.read_tensor(place[0], f"{module}.weight", place[1])


def _nothing(tensor: LazyTensor) -> None:
    if not tensors.is_zero(tensor.load()):
        raise DamagedArtifact(
            f"tensor '{tensor.name}' stands for nothing in GLoRA, yet it is not zero"
        )


def _kind(config: Mapping[str, Any], key: str) -> str:
    known = _KEYS[key]
    value = config.get(key, known[0])
    if not isinstance(value, str) or value not in known:
        raise InvalidConfig(
            f"adapter_config.json: {key} is {reprlib.repr(value)}; GLoRA knows {', '.join(known)}"
        )
    return value
