"""Format LitGPT: lit_model.pth.lora with hyperparameters.yaml and model_config.yaml.

Query, key and value are one layer there. Its lora_A holds an A for each of the three that is
enabled, below each other; its lora_B holds their rows, q before k before v (litgpt/lora.py,
LoRAQKVLinear: a grouped convolution). Rotary order is Hugging Face's.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.errors import DamagedArtifact, InvalidConfig, UnknownFormat
from adapters.intake import tensors, translate
from adapters.intake.derived import rows
from adapters.intake.locate import Listing
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors
from adapters.intake.yaml_config import read_yaml, whole_number

WEIGHTS = "lit_model.pth.lora"
_HYPERPARAMETERS = "hyperparameters.yaml"
_MODEL = "model_config.yaml"
_LORA = re.compile(r"transformer\.h\.(?P<layer>\d+)\.(?P<leaf>.+)\.lora_(?P<side>[AB])")
_LEAVES = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
_QKV = "attn.qkv"
_LEGACY_QKV = "attn.attn"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the two YAML files say that the tensors do not."""

    rank: int
    scale: float
    # Enabled projections by name, in the order of their rows, with how many rows each has.
    enabled: Mapping[str, int]


def recognises(listing: Listing) -> bool:
    return WEIGHTS in listing.names


def read(listing: Listing) -> RawAdapter:
    """Settings and tensors; raises ArtifactError subclasses."""
    hyperparameters = read_yaml(listing.path / _HYPERPARAMETERS, "rank and scale")
    model = read_yaml(listing.path / _MODEL, "the sizes of q, k and v")
    settings = _settings(hyperparameters, model)
    weights = listing.path / WEIGHTS
    factors, others = _sorted(tensors.read_pickle(weights, inside="model"), settings)
    for found in factors.values():
        translate.check_rank(found, settings.rank, _HYPERPARAMETERS)
    return RawAdapter(
        format="litgpt",
        config=translate.config_for(factors, dict.fromkeys(factors, settings.scale)),
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=listing.path,
            files=(listing.path / _HYPERPARAMETERS, listing.path / _MODEL, weights),
            base_by_trainer=short_text(hyperparameters, "checkpoint_dir"),
            trainer="LitGPT",
        ),
    )


def _settings(hyperparameters: Mapping[str, Any], model: Mapping[str, Any]) -> _Settings:
    rank = whole_number(hyperparameters, "lora_r", _HYPERPARAMETERS)
    alpha = translate.positive(
        hyperparameters.get("lora_alpha"), f"lora_alpha in {_HYPERPARAMETERS}"
    )
    heads = whole_number(model, "n_head", _MODEL)
    groups = (
        heads
        if model.get("n_query_groups") is None
        else whole_number(model, "n_query_groups", _MODEL)
    )
    size = (
        whole_number(model, "n_embd", _MODEL) // heads
        if model.get("head_size") is None
        else whole_number(model, "head_size", _MODEL)
    )
    sizes = {"query": ("q_proj", heads), "key": ("k_proj", groups), "value": ("v_proj", groups)}
    return _Settings(
        rank=rank,
        scale=alpha / rank,
        enabled={
            name: count * size
            for key, (name, count) in sizes.items()
            if _flag(hyperparameters, f"lora_{key}")
        },
    )


def _flag(settings: Mapping[str, Any], key: str) -> bool:
    value = settings.get(key)
    if not isinstance(value, bool):
        raise InvalidConfig(
            f"{key} in {_HYPERPARAMETERS} is {reprlib.repr(value)}; it must be true or false"
        )
    return value


def _sorted(
    found: Mapping[str, LazyTensor], settings: _Settings
) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        if name in ("lm_head.lora_A", "lm_head.lora_B"):
            translate.put(factors, "lm_head", name[-1], tensor)
            continue
        key = _LORA.fullmatch(name)
        if key is None:
            others[name] = tensor
            continue
        leaf, side, layer = key["leaf"], key["side"], f"model.layers.{key['layer']}"
        if leaf == _QKV:
            for projection, part in _split(tensor, side, settings):
                translate.put(factors, f"{layer}.self_attn.{projection}", side, part)
        elif leaf == _LEGACY_QKV:
            raise UnknownFormat(
                f"'{name}' is of a LitGPT before 0.5, which interleaves q, k and v; convert the "
                "adapter with LitGPT first"
            )
        else:
            # A name that is not in the table stays, for the refusal to show it.
            translate.put(factors, f"{layer}.{_LEAVES.get(leaf, leaf)}", side, tensor)
    return factors, others


def _split(tensor: LazyTensor, side: str, settings: _Settings) -> list[tuple[str, LazyTensor]]:
    """q's, k's and v's part of a factor of the joint layer."""
    enabled = settings.enabled
    counts = [settings.rank] * len(enabled) if side == "A" else list(enabled.values())
    expected = sum(counts)
    if len(tensor.shape) != 2 or tensor.shape[0] != expected:
        raise DamagedArtifact(
            f"tensor '{tensor.name}' has shape {list(tensor.shape)}; by {_HYPERPARAMETERS} and "
            f"{_MODEL} it should have {expected} rows"
        )
    parts, at = [], 0
    for projection, count in zip(enabled, counts, strict=True):
        parts.append((projection, rows(tensor, at, at + count)))
        at += count
    return parts
