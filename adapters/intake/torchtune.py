"""Format torchtune: adapter_model.pt (or adapter_N.pt) beside adapter_config.json.

Factors lie as PEFT's under torchtune's own names. For Llama and its kin torchtune keeps q and k in
Meta's interleaved rotary order; Qwen's it keeps as Hugging Face's. torchtune's own export to PEFT
reorders both (convert_weights.tune_to_peft_adapter_weights), so for Qwen that pair is wrong and
this file is right.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import AmbiguousFormat, BaseMismatch, InvalidConfig
from adapters.intake import tensors, translate
from adapters.intake.locate import CONFIG, Listing, read_config
from adapters.intake.peft_config import MAX_RANK
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

_FILE = r"adapter_model\.pt|adapter_\d+\.pt"
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])\.weight")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.magnitude")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_LEAVES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
# By Hugging Face's model_type: are q and k in Meta's order in torchtune?
_REORDERED = {
    "llama": True,
    "mistral": True,
    "gemma": True,
    "gemma2": True,
    "qwen2": False,
    "qwen3": False,
}


def recognises(listing: Listing) -> bool:
    return listing.has(_FILE)


def read(listing: Listing) -> RawAdapter:
    """Config and tensors; raises ArtifactError subclasses."""
    config = read_config(listing.path)
    found = sorted(name for name in listing.names if re.fullmatch(_FILE, name))
    if len(found) != 1:
        raise AmbiguousFormat(
            f"{listing.path} holds {len(found)} of torchtune's adapter files "
            f"({', '.join(found[:3])}); leave one"
        )
    weights = listing.path / found[0]
    factors, others = _sorted(tensors.read_pickle(weights))
    scale = _scale(config)
    for item in factors.values():
        translate.check_rank(item, config["r"], CONFIG)
    raw = RawAdapter(
        format="torchtune",
        config=translate.config_for(factors, dict.fromkeys(factors, scale)),
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=listing.path,
            files=(listing.path / CONFIG, weights),
            base_by_trainer=short_text(config, "base_model_name_or_path"),
            trainer="torchtune",
        ),
    )
    return replace(raw, for_base=partial(_for_base, raw, factors, others))


def _scale(config: Mapping[str, Any]) -> float:
    rank = config.get("r")
    # No float holds every whole number that JSON can.
    if type(rank) is not int or not 0 < rank <= MAX_RANK:
        raise InvalidConfig(
            f"{CONFIG}: r is {reprlib.repr(rank)}; a rank is a whole number of 1 to {MAX_RANK}"
        )
    return translate.positive(config.get("lora_alpha"), f"{CONFIG}: lora_alpha") / rank


def _sorted(
    found: Mapping[str, LazyTensor],
) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        key, magnitude = _LORA.fullmatch(name), _MAGNITUDE.fullmatch(name)
        if key is not None:
            translate.put(factors, _module(key["module"]), key["side"].upper(), tensor)
        elif magnitude is not None:
            others[f"{_module(magnitude['module'])}.lora_magnitude_vector"] = tensor
        else:
            others[name] = tensor
    return factors, others


def _module(name: str) -> str:
    """Hugging Face's name; a name that is not in the table stays, for the refusal to show it."""
    layer = _LAYER.fullmatch(name)
    if layer and layer[2] in _LEAVES:
        return f"model.layers.{layer[1]}.{_LEAVES[layer[2]]}"
    return "lm_head" if name == "output" else name


def _for_base(
    raw: RawAdapter,
    factors: dict[str, Factors],
    others: dict[str, LazyTensor],
    base: BaseDescriptor,
) -> RawAdapter:
    reordered = _REORDERED.get(base.model_type)
    if reordered is None:
        raise BaseMismatch(
            f"torchtune's own files are supported for bases of type {', '.join(_REORDERED)}; this "
            f"one is {base.model_type}"
        )
    if not reordered:
        return replace(raw, for_base=None)
    placed = translate.half_split_attention(factors, base)
    # DoRA's magnitude is one value a row; torchtune's own export leaves it in Meta's order.
    turned = translate.half_split_rows(others, base, ".lora_magnitude_vector")
    return replace(raw, tensors={**translate.named(placed), **turned}, for_base=None)
