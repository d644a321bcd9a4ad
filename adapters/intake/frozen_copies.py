"""Whole weights in an adapter's file: allowed only if they are the base's own.

When an embedding is targeted, PEFT saves the base's embedding beside the factors
(`save_embedding_layers="auto"`). vLLM skips these tensors. That is right as long as they are
copies; if the trainer changed them, skipping them silently changes what the adapter answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial

from adapters.errors import BaseMismatch, DamagedArtifact, NotHotServable
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.mapping import ModuleIndex, strip_prefix
from adapters.intake.raw import LazyTensor
from adapters.models import BaseDescriptor

_ENDINGS = (".base_layer.weight", ".weight")


def check_copies(
    others: Mapping[str, LazyTensor], base: BaseDescriptor, findings: Findings
) -> tuple[Callable[[], None], ...]:
    """Comparisons to run for the tensors that are no LoRA factor; the rest becomes findings."""
    index = ModuleIndex(base.modules)
    comparisons = []
    for name, tensor in others.items():
        module = _module(name)
        known = index.by_name.get(module) if module is not None else None
        if module is None or (known is None and f"{module}.weight" not in base.parameters):
            findings.add("unknown tensor", _unknown(tensor.name, name, index))
        elif module not in base.embedding_weights:
            findings.add("whole weight", _replaces(tensor.name, module))
        elif tensor.count == 0:
            findings.add(
                "zero size", DamagedArtifact(f"tensor '{tensor.name}' has no values at all")
            )
        else:
            comparisons.append(partial(_compare, tensor, module, base.embedding_weights[module]))
    return tuple(comparisons)


def _module(name: str) -> str | None:
    plain = strip_prefix(name)
    for ending in _ENDINGS:
        if plain.endswith(ending):
            return plain.removesuffix(ending)
    return None


def _unknown(name: str, translated: str, index: ModuleIndex) -> BaseMismatch:
    near = index.explain(strip_prefix(translated).rpartition(".")[0])
    return BaseMismatch(
        f"tensor '{name}' is neither a LoRA factor nor a weight of the base; {near}"
    )


def _replaces(name: str, module: str) -> NotHotServable:
    return NotHotServable(
        f"tensor '{name}' replaces the whole weight of '{module}', which no plain LoRA expresses"
    )


def _compare(tensor: LazyTensor, module: str, fingerprint: str) -> None:
    dtype, _, digest = fingerprint.partition(":")
    values = tensors.same_values(tensor.load(), dtype)
    if values is None or hashlib.sha256(tensors.raw_bytes(values)).hexdigest() != digest:
        raise NotHotServable(
            f"tensor '{tensor.name}' is not the base's own weight of '{module}': the adapter "
            "brings changed embeddings (or was trained on another base), which no plain LoRA "
            "expresses"
        )
