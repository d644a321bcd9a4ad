"""`ensure_weight_tying`: a LoRA on one end of tied embeddings goes on the other end too.

PEFT saves factors for both ends, though the head is then not among target_modules
(peft/tuners/lora/model.py, _add_targets_to_tie). It means them to be one another's transposes,
which they are of an fp32 base only: those of a bf16 base are cast, which parts them, and they are
trained, saved and loaded apart (measured with PEFT 0.21.2). Both are taken as they were saved.
"""

from __future__ import annotations

from adapters.bases.embedding_lora import EMBEDDING_LORA
from adapters.models import BaseDescriptor


def with_both_ends(targeted: frozenset[str], base: BaseDescriptor) -> frozenset[str]:
    """`targeted`, with both ends if one is there and the base ties them."""
    names = EMBEDDING_LORA.get(base.architecture)
    ends = frozenset() if names is None else frozenset({names.input, names.output})
    return targeted | ends if base.tied_embeddings and targeted & ends else targeted
