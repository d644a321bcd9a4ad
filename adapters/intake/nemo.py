"""Format NeMo: a .nemo of NeMo 1, a tar with model_config.yaml and model_weights.ckpt.

linear_in is A [r, in], linear_out is B [out, r], the scale alpha/adapter_dim (alpha null: 1). The
joint q, k, v has one A; its rows of B lie by query group: the group's query heads, its key head,
its value head. lora_hto4h is the gate's and the up projection's, one after the other. Rotary order
is Hugging Face's (NeMo's nemo/export/utils/lora_converter.py, which takes one tensor-parallel part
only; collections/nlp/modules/common/megatron/adapters/parallel_adapters.py).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.errors import (
    AmbiguousFormat,
    ArtifactError,
    DamagedArtifact,
    InvalidConfig,
    SourceUnreadable,
    UnknownFormat,
)
from adapters.intake import tensors, translate
from adapters.intake.derived import grouped_rows, rows
from adapters.intake.locate import Listing
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors
from adapters.intake.yaml_config import read_yaml, whole_number
from adapters.sources.archives import unpack
from adapters.sources.policy import policy_from_environment

_FILE = re.compile(r".*\.nemo")
_CONFIG, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
# Unpacked; a whole model is larger, and is refused.
_MAX_BYTES = 16 << 30
_PART = re.compile(r"(mp|tp)_rank_\d+.*")
_KEY = re.compile(
    r"(?:model\.)?decoder\.layers\.(?P<layer>\d+)\.(?:self_attention|mlp)\.adapter_layer\."
    r"(?P<adapter>.+)\.linear_(?P<side>in|out)\.weight"
)
_LEAVES = {
    "lora_dense_attention_adapter": "self_attn.o_proj",
    "lora_4htoh_adapter": "mlp.down_proj",
    "lora_unfused_kqv_adapter.q_adapter": "self_attn.q_proj",
    "lora_unfused_kqv_adapter.k_adapter": "self_attn.k_proj",
    "lora_unfused_kqv_adapter.v_adapter": "self_attn.v_proj",
    "lora_unfused_hto4h_adapter.gate_adapter": "mlp.gate_proj",
    "lora_unfused_hto4h_adapter.up_adapter": "mlp.up_proj",
}
_QKV, _GATE_UP = "lora_kqv_adapter", "lora_hto4h_adapter"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the config says that the tensors do not."""

    rank: int
    scale: float
    groups: int
    heads_per_group: int
    head_size: int


def recognises(listing: Listing) -> bool:
    return listing.has(_FILE.pattern) or {_CONFIG, _WEIGHTS} <= listing.names


def read(listing: Listing) -> RawAdapter:
    """Settings and tensors; raises ArtifactError subclasses, SourceRefused of hostile archives."""
    found = sorted(name for name in listing.names if _FILE.fullmatch(name))
    if len(found) > 1:
        raise AmbiguousFormat(
            f"{listing.path} holds {len(found)} .nemo files ({', '.join(found[:3])}); give one file"
        )
    if not found:
        files = (listing.path / _CONFIG, listing.path / _WEIGHTS)
        return _read(listing.path, listing.path, files)
    return _read_archive(listing.path, listing.path / found[0])


def _read_archive(source: Path, path: Path) -> RawAdapter:
    policy = policy_from_environment()
    bounded = replace(policy, max_bytes=min(policy.max_bytes, _MAX_BYTES))
    try:
        with tempfile.TemporaryDirectory(prefix="nemo-") as place:
            inside = unpack(path, Path(place), bounded)
            try:
                # The tensors are in memory when the files go.
                return _read(source, inside, (path,))
            except ArtifactError as fault:
                # Where it was unpacked means nothing to anybody.
                raise type(fault)(fault.message.replace(str(inside), path.name)) from fault
    except OSError as fault:
        raise SourceUnreadable(f"cannot unpack {path}: {fault.strerror or fault}") from fault


def _read(source: Path, inside: Path, files: tuple[Path, ...]) -> RawAdapter:
    config = read_yaml(inside / _CONFIG, "rank, scale and the sizes of q, k and v")
    _refuse_parts(inside, config)
    settings = _settings(config)
    factors, others = _sorted(tensors.read_pickle(inside / _WEIGHTS), settings)
    for found in factors.values():
        translate.check_rank(found, settings.rank, _CONFIG)
    return RawAdapter(
        format="nemo",
        config=translate.config_for(factors, dict.fromkeys(factors, settings.scale)),
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=source,
            files=files,
            base_by_trainer=short_text(config, "restore_from_path"),
            trainer="NeMo",
            trainer_version=short_text(config, "nemo_version"),
        ),
    )


def _refuse_parts(inside: Path, config: Mapping[str, Any]) -> None:
    parts = sorted(item.name for item in inside.iterdir() if _PART.fullmatch(item.name))
    sizes = [config.get(f"{kind}_model_parallel_size", 1) for kind in ("tensor", "pipeline")]
    if parts or sizes != [1, 1]:
        raise UnknownFormat(
            f"the adapter was saved in parts ({', '.join(parts[:2]) or 'model parallel'}: tensor "
            f"parallel {str(sizes[0])[:20]}, pipeline parallel {str(sizes[1])[:20]}); merge them "
            "with NeMo (both sizes 1), or export it to PEFT"
        )
    if not (inside / _WEIGHTS).is_file():
        raise DamagedArtifact(f"the adapter has no {_WEIGHTS} beside {_CONFIG}; save it again")


def _settings(config: Mapping[str, Any]) -> _Settings:
    peft = config.get("peft")
    scheme = peft.get("peft_scheme") if isinstance(peft, dict) else None
    tuning = peft.get("lora_tuning") if isinstance(peft, dict) else None
    if scheme != "lora" or not isinstance(tuning, dict):
        raise UnknownFormat(
            f"{_CONFIG}: peft.peft_scheme is {str(scheme)[:40]!r}; of NeMo's adapters LoRA is "
            "supported, and a .nemo without peft is a whole model"
        )
    if config.get("rotary_interleaved"):
        raise UnknownFormat(f"{_CONFIG}: rotary_interleaved is set, which is not supported")
    rank = whole_number(tuning, "adapter_dim", _CONFIG)
    alpha = tuning.get("alpha")
    scale = 1.0 if alpha is None else translate.positive(alpha, f"{_CONFIG}: alpha") / rank
    heads = whole_number(config, "num_attention_heads", _CONFIG)
    groups = heads
    if config.get("num_query_groups") is not None:
        groups = whole_number(config, "num_query_groups", _CONFIG)
    size = whole_number(config, "hidden_size", _CONFIG) // heads
    if config.get("kv_channels") is not None:
        size = whole_number(config, "kv_channels", _CONFIG)
    if heads % groups:
        raise InvalidConfig(
            f"{_CONFIG}: {heads} attention heads do not divide into {groups} query groups"
        )
    return _Settings(rank, scale, groups, heads // groups, size)


def _sorted(
    found: Mapping[str, LazyTensor], settings: _Settings
) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        key = _KEY.fullmatch(name)
        if key is None:
            others[name] = tensor
            continue
        side, layer = "A" if key["side"] == "in" else "B", f"model.layers.{key['layer']}"
        for leaf, part in _parts(key["adapter"], side, tensor, settings):
            translate.put(factors, f"{layer}.{leaf}", side, part)
    return factors, others


def _parts(
    adapter: str, side: str, tensor: LazyTensor, settings: _Settings
) -> list[tuple[str, LazyTensor]]:
    """The modules that the adapter is for, each with its part of the tensor."""
    if adapter == _QKV:
        names = [f"self_attn.{name}_proj" for name in ("q", "k", "v")]
        return list(zip(names, _query_key_value(side, tensor, settings), strict=True))
    if adapter == _GATE_UP:
        return list(zip(("mlp.gate_proj", "mlp.up_proj"), _halves(side, tensor), strict=True))
    # A name that is not in the table stays, for the refusal to show it.
    return [(_LEAVES.get(adapter, adapter), tensor)]


def _query_key_value(side: str, tensor: LazyTensor, settings: _Settings) -> list[LazyTensor]:
    if side == "A":
        return [tensor] * 3
    heads = settings.heads_per_group
    _check_rows(tensor, settings.groups * (heads + 2) * settings.head_size)
    spans = ((0, heads), (heads, heads + 1), (heads + 1, heads + 2))
    return [grouped_rows(tensor, settings.groups, heads + 2, span) for span in spans]


def _halves(side: str, tensor: LazyTensor) -> list[LazyTensor]:
    if side == "A":
        return [tensor] * 2
    half = tensor.shape[0] // 2 if tensor.shape else 0
    _check_rows(tensor, 2 * half)
    return [rows(tensor, 0, half), rows(tensor, half, 2 * half)]


def _check_rows(tensor: LazyTensor, count: int) -> None:
    if len(tensor.shape) != 2 or tensor.shape[0] != count:
        raise DamagedArtifact(
            f"tensor '{tensor.name}' has shape {list(tensor.shape)}; by {_CONFIG} it should have "
            f"{count} rows"
        )
