"""Format Tinker: PEFT's two files, as Thinking Machines' training service hands them out.

Names, shapes and scale are PEFT's, but for the output head (`model.unembed_tokens`), experts whose
factors lie in one tensor of three dimensions, and models whose parts Hugging Face keeps elsewhere:
under `model.language_model.` (tinker-cookbook, weights/_merge_utils.py), or as one fused layer.
The config's target_modules say "all-linear" whatever was trained, so the tensors decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import DamagedArtifact
from adapters.intake import tensors
from adapters.intake.locate import CONFIG, Listing, read_config
from adapters.intake.mapping import ModuleIndex, strip_prefix
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

WEIGHTS = "adapter_model.safetensors"
# Names that only Tinker gives: PEFT's experts have numbers, and its head is lm_head.
_OWN = re.compile(r"(?:^|\.)unembed_tokens\.lora_|\.experts\.w[123]\.lora_")
_LORA = re.compile(r".+\.lora_[AB]\.weight")
# Its smallest config; PEFT always writes a peft_type.
_BARE = {"r", "lora_alpha", "base_model_name_or_path"}
_HEAD = "model.unembed_tokens."
_INNER = "model."
_NESTED = "model.language_model."


def recognises(listing: Listing) -> bool:
    """Tensors of Tinker's own names, or LoRA under its barest config."""
    if WEIGHTS not in listing.names:
        return False
    config = listing.config or {}
    bare = {"r", "lora_alpha"} <= set(config) <= _BARE
    names = listing.tensor_names(WEIGHTS) or ()
    return any(_OWN.search(name) or (bare and _LORA.fullmatch(name)) for name in names)


def read(listing: Listing) -> RawAdapter:
    """Config and tensors' headers; raises ArtifactError subclasses."""
    config = read_config(listing.path)
    if WEIGHTS not in listing.names:
        raise DamagedArtifact(f"{listing.path} has no {WEIGHTS}; download the adapter again")
    found = {
        strip_prefix(name).replace(_HEAD, "lm_head."): tensor
        for name, tensor in tensors.read_safetensors(listing.path / WEIGHTS).items()
        if not _placeholder(name, tensor)
    }
    raw = RawAdapter(
        format="tinker",
        config={"peft_type": "LORA", "bias": "none", **config, "target_modules": None},
        tensors=found,
        provenance=Provenance(
            source=listing.path,
            files=(listing.path / CONFIG, listing.path / WEIGHTS),
            base_by_trainer=short_text(config, "base_model_name_or_path"),
            trainer="Tinker",
        ),
    )
    return replace(raw, for_base=partial(_for_base, raw))


def _placeholder(name: str, tensor: LazyTensor) -> bool:
    """Empty factors stand for an expert's projection that the model does not have."""
    return ".experts" in name and tensor.count == 0


def _for_base(raw: RawAdapter, base: BaseDescriptor) -> RawAdapter:
    """Into the part of a multimodal base that is the language model, if it has one."""
    index = ModuleIndex(base.modules).by_name
    if not any(name.startswith(_NESTED) for name in index):
        return replace(raw, for_base=None)
    return replace(raw, tensors=_nested(raw.tensors), for_base=None)


def _nested(found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {
        f"{_NESTED}{name.removeprefix(_INNER)}" if name.startswith(_INNER) else name: tensor
        for name, tensor in found.items()
    }
