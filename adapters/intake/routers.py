"""LoRA on the routers of a mixture: a matrix a layer, under two names and declared in two ways.

transformers 5 has no linear layer for a router, so PEFT 0.21 takes it as a parameter: it reads
`gate` in target_modules as `gate.weight` in target_parameters and saves it so. Its factors look
like a linear layer's all the same. For Mixtral PEFT saves `mlp.gate`, which vLLM silently ignores;
the checkpoint's `block_sparse_moe.gate` is what both vLLM and PEFT apply (measured).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from adapters.bases.experts import EXPERTS
from adapters.errors import DamagedArtifact, InvalidConfig, NotHotServable
from adapters.intake.lora import LoraPlan, plan_lora
from adapters.intake.mapping import parse_lora_key
from adapters.intake.peft_config import LoraSettings, parse_settings
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor, ModuleSpec

# A pattern for no module: an empty list would mean that the config says nothing.
_NOTHING = "(?!)"
_APPLIED = ("exclude_modules", "layers_to_transform", "layers_pattern")


def plan_router(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """`plan_lora` for an adapter with routers among its modules."""
    placed, widened = with_routers(raw, base)
    plan = plan_lora(placed, widened)
    plan = replace(plan, problems=(*plan.problems, *_absent(raw)))
    routers = {spec.router for spec in base.experts}
    names = EXPERTS.get(base.architecture)
    found = next((pair for pair in plan.pairs if pair.module.name in routers), None)
    if found is None or (names is not None and names.hot_router):
        return plan
    unproved = NotHotServable(
        f"'{found.a_name}': that vLLM applies a LoRA on the router of {base.architecture} is not "
        "proved, so it is for the merged lane"
    )
    return replace(plan, problems=(*plan.problems, unproved))


def _absent(raw: RawAdapter) -> list[DamagedArtifact]:
    """Parameters that the config names and no tensor is for."""
    keys = [key for name in raw.tensors if (key := parse_lora_key(name)) is not None]
    return [
        DamagedArtifact(
            f"adapter_config.json targets the parameter '{target}', but there are no tensors for "
            "it; part of the adapter is missing"
        )
        for target in target_parameters(raw.config)
        if not any(covered(f"{key.module}.weight", [target]) for key in keys)
    ]


def with_routers(raw: RawAdapter, base: BaseDescriptor) -> tuple[RawAdapter, BaseDescriptor]:
    """The same with routers as linear layers of the base, by the checkpoint's names.

    `target_parameters` is gone from the config: its routers are among target_modules, where the
    patterns are applied already. Raises InvalidConfig.
    """
    routers = _Routers.of(base)
    parameters = target_parameters(raw.config)
    if not routers.specs:
        return raw, base
    tensors = {_renamed(name, routers.stored): tensor for name, tensor in raw.tensors.items()}
    there = {key.module for name in tensors if (key := parse_lora_key(name)) is not None}
    settings = parse_settings(raw.config)
    declared = {name for name in routers.specs if covered(routers.parameter(name), parameters)}
    modules = (*base.modules, *(routers.specs[name] for name in sorted(routers.specs)))
    targeted = _targeted(settings, routers, base, there)
    config = {key: value for key, value in raw.config.items() if key != "target_parameters"}
    if targeted is not None or parameters:
        config |= dict.fromkeys(_APPLIED)
        config["target_modules"] = sorted((targeted or frozenset()) | declared) or _NOTHING
    config |= _patterns(settings, routers, declared & there)
    return replace(raw, config=config, tensors=tensors), base.model_copy(
        update={"modules": modules}
    )


def target_parameters(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters that PEFT wraps by name; raises InvalidConfig."""
    value = config.get("target_parameters") or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidConfig("adapter_config.json: target_parameters must be a list of names")
    return tuple(sorted(value))


def covered(parameter: str, targets: Iterable[str]) -> bool:
    """Does PEFT take `parameter` for one of `targets` (peft/tuners/tuners_utils.py)?"""
    return any(parameter == target or parameter.endswith(f".{target}") for target in targets)


@dataclass(frozen=True)
class _Routers:
    """A base's routers by the checkpoint's name; `models` has transformers' name of each."""

    specs: Mapping[str, ModuleSpec]
    models: Mapping[str, str]

    @classmethod
    def of(cls, base: BaseDescriptor) -> _Routers:
        specs, models = {}, {}
        for layer in base.experts:
            if layer.router is not None:
                specs[layer.router] = ModuleSpec(
                    name=layer.router,
                    kind="linear",
                    in_features=layer.hidden,
                    out_features=layer.count,
                )
                leaf = layer.router.rpartition(".")[2]
                models[layer.router] = f"{layer.name.removesuffix('experts')}{leaf}"
        return cls(specs, models)

    @cached_property
    def stored(self) -> Mapping[str, str]:
        """The checkpoint's name by either name."""
        return {self.models[name]: name for name in self.specs} | {n: n for n in self.specs}

    def parameter(self, name: str) -> str:
        """What PEFT's target_parameters and patterns are matched with."""
        return f"{self.models[name]}.weight"


def _renamed(name: str, stored: Mapping[str, str]) -> str:
    key = parse_lora_key(name)
    if key is None or key.module not in stored:
        return name
    return name.replace(key.module, stored[key.module])


def _targeted(
    settings: LoraSettings, routers: _Routers, base: BaseDescriptor, there: set[str]
) -> frozenset[str] | None:
    """What target_modules means, a router's two names being one.

    `all-linear` and patterns meant the router in transformers 4 and no longer do, so with them the
    tensors decide.
    """
    either = [
        spec.model_copy(update={"name": name})
        for name, stored in routers.stored.items()
        for spec in [routers.specs[stored]]
        if stored in there or not isinstance(settings.targets, str)
    ]
    found = settings.targeted((*base.modules, *either))
    return None if found is None else frozenset(routers.stored.get(name, name) for name in found)


def _patterns(settings: LoraSettings, routers: _Routers, names: set[str]) -> dict[str, Any]:
    """Both patterns with these routers' own entries first, as their parameters' names decide."""
    if not settings.ranks and not settings.alphas:
        return {}
    scales = settings.scales([routers.parameter(name) for name in sorted(names)])
    found = {f"^{re.escape(name)}": scales[routers.parameter(name)] for name in sorted(names)}
    return {
        "rank_pattern": {key: item.rank for key, item in found.items()} | dict(settings.ranks),
        "alpha_pattern": {key: item.alpha for key, item in found.items()} | dict(settings.alphas),
    }
