"""A LoRA's tensors sorted by what they are: factors, and what it may bring besides them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from adapters.errors import ArtifactError, BaseMismatch, DamagedArtifact
from adapters.intake.findings import Findings
from adapters.intake.lora import FLOATS
from adapters.intake.mapping import (
    PREFIX,
    TOKEN_ROWS,
    ModuleIndex,
    parse_lora_key,
    stored_name,
    strip_prefix,
)
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.models import BaseDescriptor

_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_LORA_BIAS = re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias")
_WHOLE = re.compile(r"(.+?)(\.base_layer)?\.(weight|bias)")
# A state dict that was not taken from PEFT names the adapter in the middle.
_COPY = re.compile(r"\.modules_to_save(?:\.[^.]+(?=\.))?(?=\.)")
# What modules_to_save was copied from, which PEFT saves along when the vocabulary has grown.
_ORIGINAL = re.compile(r"(.+)\.original_module\.(weight|bias)")


@dataclass(slots=True)
class FamilyParts:
    """The tensors by module (`whole` by parameter); `uses` all of them by stored name."""

    factors: dict[str, LazyTensor] = field(default_factory=dict)
    magnitudes: dict[str, LazyTensor] = field(default_factory=dict)
    lora_biases: dict[str, LazyTensor] = field(default_factory=dict)
    tokens: dict[str, LazyTensor] = field(default_factory=dict)
    whole: dict[str, LazyTensor] = field(default_factory=dict)
    originals: dict[str, LazyTensor] = field(default_factory=dict)
    uses: dict[str, LazyTensor] = field(default_factory=dict)

    @staticmethod
    def fault(tensor: LazyTensor, shape: tuple[int, ...], what: str) -> ArtifactError | None:
        """What is wrong with the tensor's shape or dtype; None if nothing."""
        if tensor.count == 0:
            return DamagedArtifact(
                f"tensor '{tensor.name}' has shape {list(tensor.shape)}, no values at all: its "
                "shards were not gathered when it was saved (DeepSpeed ZeRO-3, FSDP)"
            )
        if tensor.dtype not in FLOATS:
            return DamagedArtifact(
                f"tensor '{tensor.name}' is {tensor.dtype}; an adapter's are F16, BF16, F32 or F64"
            )
        if tensor.shape != shape:
            return BaseMismatch(
                f"tensor '{tensor.name}' has shape {list(tensor.shape)}; for '{what}' of the base "
                f"it must be {list(shape)}"
            )
        return None


def sort_parts(raw: RawAdapter, base: BaseDescriptor, findings: Findings) -> FamilyParts:
    """Sort the tensors; unknown ones and two for one place become findings."""
    parts = FamilyParts()
    index = ModuleIndex(base.modules)
    for name, tensor in raw.tensors.items():
        if parse_lora_key(name) is not None:
            parts.factors[name] = tensor
            parts.uses[stored_name(name)] = tensor
            continue
        plain = _COPY.sub("", strip_prefix(name))
        if plain != strip_prefix(name) and (plain in raw.tensors or PREFIX + plain in raw.tensors):
            continue  # PEFT saves the copy under both names when the vocabulary has grown.
        if found := _MAGNITUDE.fullmatch(plain):
            place, key, stored = parts.magnitudes, found[1], f"{found[1]}.lora_magnitude_vector"
        elif found := _LORA_BIAS.fullmatch(plain):
            place, key, stored = parts.lora_biases, found[1], f"{found[1]}.lora_B.bias"
        elif found := TOKEN_ROWS.fullmatch(plain):
            stored = f"{found[1]}.token_adapter.trainable_tokens_delta"
            place, key = parts.tokens, found[1]
        elif found := _ORIGINAL.fullmatch(plain):
            place, key, stored = parts.originals, f"{found[1]}.{found[2]}", plain
        elif found := _WHOLE.fullmatch(plain):
            place, key, stored = parts.whole, f"{found[1]}.{found[3]}", plain
        else:
            findings.add("unknown tensor", _unknown(tensor, plain, index))
            continue
        whole = place is parts.whole or place is parts.originals
        known = whole and key in base.parameters
        if not known and found[1] not in index.by_name:
            findings.add("unknown tensor", _unknown(tensor, found[1], index))
        elif whole and key.endswith(".bias") and not known:
            findings.add("no such bias", _no_bias(tensor, found[1]))
        elif place.setdefault(key, tensor) is not tensor:
            findings.add(
                "twice",
                DamagedArtifact(
                    f"'{place[key].name}' and '{tensor.name}' are both for '{key}'; one too many"
                ),
            )
        parts.uses[f"{PREFIX}{stored}"] = tensor
    return parts


def _unknown(tensor: LazyTensor, module: str, index: ModuleIndex) -> BaseMismatch:
    return BaseMismatch(
        f"tensor '{tensor.name}' is for nothing that the base has; {index.explain(module)}"
    )


def _no_bias(tensor: LazyTensor, module: str) -> BaseMismatch:
    return BaseMismatch(
        f"tensor '{tensor.name}' is a bias, and '{module}' of the base has none: the adapter was "
        "trained on another base"
    )
