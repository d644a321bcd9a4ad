"""Tokens of an adapter's own: rows added to the vocabulary, rows of the embedding retrained."""

from __future__ import annotations

import reprlib
from functools import partial
from pathlib import Path
from typing import Any

from adapters.errors import BaseMismatch, DamagedArtifact, InvalidConfig, NotServable
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.lora_parts import FamilyParts
from adapters.intake.merging import Edit, weight_of
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.tied import input_embedding, output_head
from adapters.models import BaseDescriptor, ModuleSpec

# Either of these says how text becomes tokens; the others go with them.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def new_vocabulary(
    parts: FamilyParts, saved: frozenset[str], base: BaseDescriptor, findings: Findings
) -> BaseDescriptor:
    """The base with as many tokens as the file's embeddings have; the base itself if as many."""
    ends = {"input": input_embedding(base), "output": output_head(base)}
    rows = {
        side: tensor.shape[0]
        for side, spec in ends.items()
        if spec is not None
        and (tensor := parts.whole.get(f"{spec.name}.weight")) is not None
        and len(tensor.shape) == 2
    }
    size = max(rows.values(), default=base.vocab_size)
    if size <= base.vocab_size:
        return base
    # A tied weight is one for both ends, but for a copy that modules_to_save made of one of them.
    both = len(rows) == 2 or (
        base.tied_embeddings
        and (parts.originals or not any(spec.name in saved for spec in ends.values() if spec))
    )
    if not both or len(set(rows.values())) > 1:
        there = ", ".join(
            f"the {side} embedding with {count}" for side, count in sorted(rows.items())
        )
        findings.add(
            "vocabulary",
            DamagedArtifact(
                f"the vocabulary was enlarged to {size} tokens from {base.vocab_size}, and of its "
                f"two ends the file has only {there}; save both embed_tokens and lm_head"
            ),
        )
        return base
    sized = [_sized(spec, size) if spec in ends.values() else spec for spec in base.modules]
    return base.model_copy(update={"modules": tuple(sized), "vocab_size": size})


def _sized(spec: ModuleSpec, size: int) -> ModuleSpec:
    side = "in_features" if spec.kind == "embedding" else "out_features"
    return spec.model_copy(update={side: size})


def tokenizer_files(
    raw: RawAdapter, base: BaseDescriptor, sized: BaseDescriptor, findings: Findings
) -> tuple[Path, ...]:
    """The tokenizer beside an adapter that adds tokens, without which nobody can use them."""
    if sized.vocab_size == base.vocab_size:
        return ()
    folder = raw.provenance.source
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(set(needed) <= set(there) for needed in _TOKENIZERS):
        beside = f" (only {', '.join(there)})" if there else ""
        findings.add(
            "tokenizer",
            DamagedArtifact(
                f"it adds {sized.vocab_size - base.vocab_size} tokens to the vocabulary, and no "
                f"tokenizer is beside it{beside}; save the one it was trained with into its "
                "directory"
            ),
        )
    return tuple(folder / name for name in there)


def check_tokens(
    raw: RawAdapter, parts: FamilyParts, base: BaseDescriptor, findings: Findings
) -> dict[str, tuple[tuple[int, ...], LazyTensor]]:
    """Retrained rows by module: which, and their values."""
    declared = _indices(raw.config.get("trainable_token_indices"), base)
    specs = {spec.name: spec for spec in base.modules}
    found: dict[str, tuple[tuple[int, ...], LazyTensor]] = {}
    for module, tensor in parts.tokens.items():
        key = next((k for k in declared if module == k or module.endswith(f".{k}")), None)
        if key is None:
            findings.add(
                "tokens not declared",
                InvalidConfig(
                    f"tensor '{tensor.name}' replaces rows of '{module}', and "
                    "trainable_token_indices in adapter_config.json does not say which"
                ),
            )
            continue
        rows, spec = declared.pop(key), specs[module]
        size, width = weight_of(spec)[1]
        beyond = [row for row in rows if row >= size]
        fault = parts.fault(tensor, (len(rows), width), module)
        if beyond:
            fault = BaseMismatch(
                f"trainable_token_indices names token {beyond[0]}; '{module}' has {size} rows"
            )
        if base.tied_embeddings and spec.kind != "embedding":
            fault = NotServable(
                f"tensor '{tensor.name}' retrains rows of a head that is tied to the embedding"
            )
        if fault is not None:
            findings.add("tokens", fault)
        found[module] = (rows, tensor)
    for key in declared:
        findings.add(
            "tokens absent",
            DamagedArtifact(
                f"trainable_token_indices names rows of '{key}', and there is no "
                "trainable_tokens_delta for it: a part of the adapter is missing"
            ),
        )
    return found


def _indices(value: Any, base: BaseDescriptor) -> dict[str, tuple[int, ...]]:
    """trainable_token_indices by module; a list is for the input embedding."""
    if value is None or value in ([], {}):
        return {}
    embedding = input_embedding(base)
    by_module = {embedding.name if embedding else "embed_tokens": value}
    if isinstance(value, dict):
        by_module = value
    for rows in by_module.values():
        numbers = isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
        if not numbers or len(set(rows)) < len(rows):
            raise InvalidConfig(
                f"adapter_config.json: trainable_token_indices is {reprlib.repr(value)}; it must "
                "be a list of different token numbers, or such a list for each module"
            )
    return {module: tuple(rows) for module, rows in by_module.items()}


def replaced_rows(spec: ModuleSpec, rows: tuple[int, ...], tensor: LazyTensor) -> Edit:
    """PEFT's trainable_tokens_delta holds the rows themselves, despite its name."""
    name, shape = weight_of(spec)
    return Edit(name, shape, (tensor,), partial(tensors.with_rows, rows), name, spec.name)
