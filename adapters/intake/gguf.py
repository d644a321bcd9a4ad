"""Format GGUF: llama.cpp's adapters, one file of convert_lora_to_gguf.py.

Factors lie as PEFT's do, under the base's GGUF names, but for two things: the embedding's A is
turned, and for the architecture `llama` the rows of q's and k's B are in the interleaved rotary
order of llama.cpp. How many heads there are, only the base tells. The scale is alpha/r with r of
each tensor, or 1 when alpha is 0 (llama.cpp, llama-adapter.h).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import AmbiguousFormat, InvalidConfig, UnknownFormat
from adapters.intake import tensors, translate
from adapters.intake.derived import transposed
from adapters.intake.gguf_header import Gguf, GgufTensor, read_gguf_header
from adapters.intake.locate import Listing
from adapters.intake.provenance import short_text
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors

if TYPE_CHECKING:
    import torch

    from adapters.models import BaseDescriptor

_FILE = r".*\.gguf"
# Architectures whose names translate as below, and whether llama.cpp reorders q and k.
_REORDERED = {
    "llama": True,
    "qwen2": False,
    "qwen3": False,
    "gemma": False,
    "gemma2": False,
    "gemma3": False,
}
_LEAVES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_ENDS = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)")
_LORA = re.compile(r"(?P<base>.+)\.weight\.lora_(?P<side>[ab])")


def recognises(listing: Listing) -> bool:
    return listing.has(_FILE)


def read(listing: Listing) -> RawAdapter:
    """Key-values and tensors' headers; raises ArtifactError subclasses."""
    found = sorted(name for name in listing.names if re.fullmatch(_FILE, name))
    if len(found) != 1:
        raise AmbiguousFormat(
            f"{listing.path} holds {len(found)} GGUF files ({', '.join(found[:3])}); "
            "give the adapter's file itself"
        )
    path = listing.path / found[0]
    header = read_gguf_header(path)
    architecture = _architecture(header, path.name)
    factors, others = _sorted(path, header)
    alpha = _alpha(header, path.name)
    scales = {m: alpha / f.rank if alpha else 1.0 for m, f in factors.items()}
    config = translate.config_for(factors, scales)
    tokens = header.values.get("adapter.alora.invocation_tokens")
    if tokens:
        config["alora_invocation_tokens"] = tokens
    raw = RawAdapter(
        format="gguf",
        config=config,
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=listing.path,
            files=(path,),
            base_by_trainer=short_text(header.values, "general.base_model.0.name"),
            trainer="llama.cpp",
        ),
    )
    if not _REORDERED[architecture]:
        return raw
    return replace(raw, for_base=partial(_for_base, raw, factors, others))


def _architecture(header: Gguf, name: str) -> str:
    kind = header.values.get("general.type")
    if kind != "adapter":
        raise UnknownFormat(
            f"{name} is a GGUF file of type {str(kind or 'model')[:40]!r}, not an adapter"
        )
    adapter_type = header.values.get("adapter.type")
    if adapter_type != "lora":
        raise UnknownFormat(
            f"{name} is a GGUF adapter of type {str(adapter_type)[:40]!r}; LoRA is supported"
        )
    architecture = str(header.values.get("general.architecture"))
    if architecture not in _REORDERED:
        raise UnknownFormat(
            f"{name} is for llama.cpp's architecture {architecture[:40]!r}; GGUF adapters are "
            f"supported for {', '.join(_REORDERED)}: register the PEFT adapter it was made from"
        )
    return architecture


def _alpha(header: Gguf, name: str) -> float:
    alpha = header.values.get("adapter.lora.alpha")
    if alpha is None:
        raise InvalidConfig(
            f"{name} has no adapter.lora.alpha; without it the adapter's strength is unknown"
        )
    return 0.0 if alpha == 0 else translate.positive(alpha, f"adapter.lora.alpha in {name}")


def _sorted(path: Path, header: Gguf) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, info in header.tensors.items():
        tensor = _lazy(path, name, info)
        key = _LORA.fullmatch(name)
        if key is None:
            module, dot, leaf = name.rpartition(".")
            others[f"{_module(module)}{dot}{leaf}"] = tensor
            continue
        module = _module(key["base"])
        embedding = module == _ENDS["token_embd"]
        side = key["side"].upper()
        if embedding and side == "A":
            tensor = transposed(tensor)
        translate.put(factors, module, side, tensor)
        factors[module].embedding = embedding
    return factors, others


def _module(name: str) -> str:
    """Hugging Face's name; a name that is not in the table stays, for the refusal to show it."""
    block = _BLOCK.fullmatch(name)
    if block and block[2] in _LEAVES:
        return f"model.layers.{block[1]}.{_LEAVES[block[2]]}"
    return _ENDS.get(name, name)


def _lazy(path: Path, name: str, info: GgufTensor) -> LazyTensor:
    quantized = info.type == "Q8_0"

    def load() -> torch.Tensor:
        raw = tensors.pread(path, name, info.start, info.end)
        if quantized:
            return tensors.from_q8_0(raw, info.shape)
        return tensors.viewed(raw, info.type, info.shape)

    return LazyTensor(name, "F32" if quantized else info.type, info.shape, load)


def _for_base(
    raw: RawAdapter,
    factors: dict[str, Factors],
    others: dict[str, LazyTensor],
    base: BaseDescriptor,
) -> RawAdapter:
    placed = translate.half_split_attention(factors, base)
    return replace(raw, tensors={**translate.named(placed), **others}, for_base=None)
