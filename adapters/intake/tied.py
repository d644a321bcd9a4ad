"""Bases whose output head is the input embedding: a merge that changes one end unties them.

In PEFT the two are modules of their own: a LoRA on the embedding acts on the input only, one on
the head on the logits only. Merging either into the one shared weight changes both ends, which is
what PEFT's own merge gets wrong (logits off by 50 where the adapter's effect is 0.8). So the head
gets a weight of its own and the merged model's config says `tie_word_embeddings: false`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adapters.errors import NotServable
from adapters.intake.merging import Edit, weight_of
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

# Output heads by what architectures call them; the config names none.
_HEADS = ("lm_head", "embed_out", "output")


def input_embedding(base: BaseDescriptor) -> ModuleSpec | None:
    """The embedding of the tokens; None if no module is as large as the vocabulary."""
    return next(
        (m for m in base.modules if m.kind == "embedding" and m.in_features == base.vocab_size),
        None,
    )


def output_head(base: BaseDescriptor) -> ModuleSpec | None:
    """The linear layer that makes the logits; None if there is none by a known name."""
    return next((m for m in base.modules if m.kind == "linear" and m.name in _HEADS), None)


def apart(edits: Sequence[Edit], base: BaseDescriptor) -> tuple[tuple[Edit, ...], dict[str, Any]]:
    """The edits, with head and embedding untied if one of them is changed; and `base_config`.

    Raises NotServable when the base's two ends cannot be told.
    """
    if not base.tied_embeddings:
        return tuple(edits), {}
    embedding, head = input_embedding(base), output_head(base)
    ends = {weight_of(spec)[0] for spec in (embedding, head) if spec is not None}
    touched = {edit.parameter for edit in edits}
    if (embedding is None or head is None) and not _inner(touched, base):
        raise NotServable(
            f"its change reaches the tied embeddings of this {base.architecture}, whose two ends "
            "are not known by name here, so they cannot be untied"
        )
    if embedding is None or head is None or not touched & ends:
        return tuple(edits), {}
    (source, _), (target, shape) = weight_of(embedding), weight_of(head)
    placed: list[Edit] = []
    first = True
    for edit in edits:
        is_first = first and edit.parameter == target
        first = first and not is_first
        reads_it = is_first and edit.reads is not None
        placed.append(replace(edit, reads=source) if reads_it else edit)
    if first:
        placed.append(Edit(target, shape, (), _unchanged, source, head.name, _rows_unchanged))
    return tuple(placed), {"tie_word_embeddings": False}


def _inner(parameters: set[str], base: BaseDescriptor) -> bool:
    """Is none of `parameters` as large as the vocabulary?"""
    large = {
        weight_of(spec)[0]
        for spec in base.modules
        if base.vocab_size in (spec.in_features, spec.out_features)
    }
    return not parameters & large


def _unchanged(old: torch.Tensor) -> torch.Tensor:
    return old


def _rows_unchanged(rows: slice, old: torch.Tensor) -> torch.Tensor:
    return old
