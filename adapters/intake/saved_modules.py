"""modules_to_save: modules that were trained whole, with every parameter in the file.

PEFT wraps each module whose path ends in one of the names (`key.endswith(name)`, so `norm` is
also every layer's `input_layernorm`) and trains a copy of it.
"""

from __future__ import annotations

from adapters.errors import DamagedArtifact, InvalidConfig
from adapters.intake.findings import Findings
from adapters.intake.lora_parts import FamilyParts
from adapters.intake.merging import weight_of
from adapters.intake.peft_config import names_of
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor


def saved_modules(raw: RawAdapter, base: BaseDescriptor, findings: Findings) -> frozenset[str]:
    """The modules with parameters of their own that the config says were trained whole."""
    owners = {name.rpartition(".")[0] for name in _shapes(base)}
    saved: set[str] = set()
    for name in names_of(raw.config, "modules_to_save"):
        covered = {owner for owner in owners if _covers(name, owner)}
        if not covered:
            findings.add(
                "no such module",
                InvalidConfig(
                    f"adapter_config.json: modules_to_save names '{name}', and no module of the "
                    "base's ends in that"
                ),
            )
        saved |= covered
    return frozenset(saved)


def check_whole(
    parts: FamilyParts, saved: frozenset[str], base: BaseDescriptor, findings: Findings
) -> None:
    """Every parameter of the saved modules is there, and each whole one has the base's shape."""
    shapes = _shapes(base)
    for parameter, tensor in (*parts.whole.items(), *parts.originals.items()):
        fault = parts.fault(tensor, shapes[parameter], parameter)
        if fault is not None:
            findings.add("whole parameter", fault)
    for parameter in sorted(shapes):
        if parameter.rpartition(".")[0] in saved and parameter not in parts.whole:
            findings.add(
                "saved but absent",
                DamagedArtifact(
                    f"adapter_config.json: modules_to_save covers '{parameter}', which is not in "
                    "the file: a part of the adapter is missing"
                ),
            )


def _shapes(base: BaseDescriptor) -> dict[str, tuple[int, ...]]:
    return {**dict(map(weight_of, base.modules)), **base.parameters}


def _covers(name: str, owner: str) -> bool:
    """Does the module's path, or one of the modules it is in, end in `name`?"""
    parts = owner.split(".")
    return any(".".join(parts[: i + 1]).endswith(name) for i in range(len(parts)))


def without_saved(base: BaseDescriptor, saved: frozenset[str]) -> BaseDescriptor:
    """The base as target_modules sees it: PEFT gives a module that is saved whole no LoRA."""
    kept = tuple(spec for spec in base.modules if spec.name not in saved)
    return base.model_copy(update={"modules": kept})
