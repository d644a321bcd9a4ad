"""Format kohya: one .safetensors with flattened module names, as kohya's scripts and LyCORIS write.

`PREFIX_a_b_c.lora_down.weight` [r, in] and `.lora_up.weight` [out, r] are A and B of the module
a.b.c, whose dots became underscores; only the base tells which module that was. `.alpha` is a
scalar of each module's own, divided by the rank of its tensors; without it, or with 0, the factor
is 1 (LyCORIS, modules/locon.py; kohya's networks/lora.py). LyCORIS's LoHa and LoKr have their
PEFT names after the dot, but the sizes of LoKr's two matrices are the tensors' own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import (
    AmbiguousFormat,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotServable,
    UnknownFormat,
)
from adapters.intake import tensors, translate
from adapters.intake.locate import CONFIG, Listing
from adapters.intake.lokr import measured_sides
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

# Other formats' files are known by their name; any other safetensors file may be one of kohya's.
_OTHERS = re.compile(
    r"adapter_model\.safetensors|(\d+_)?adapters\.safetensors|pytorch_lora_weights\.safetensors"
    r"|(model|pytorch_model|consolidated|value_head)[^/]*\.safetensors"
)
_MAX_FILES = 16
_KEY = re.compile(r"(?P<stem>(?:lora|lycoris)_[^.]+)\.(?P<part>.+)")
_MARKS = re.compile(r"(?:lora|lycoris)_[^.]+\.(?:lora_(?:up|down)\.weight|hada_w|lokr_w|alpha$)")
_NAMED = re.compile(r"[^/]*(lora|lycoris)[^/]*\.safetensors", re.IGNORECASE)
_IMAGE = re.compile(r"lora_(unet|transformer|vae|controlnet)_")
_PREFIXES = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lycoris_", "lora_")
_PARTS = {
    "lora": {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"},
    "loha": {f"hada_w{n}_{side}": f"hada_w{n}_{side}" for n in (1, 2) for side in "ab"},
    "lokr": {f"lokr_w{n}{end}": f"lokr_w{n}{end}" for n in (1, 2) for end in ("", "_a", "_b")},
}
# What only LyCORIS has, by the tensor that shows it.
_REFUSED = {
    "lora_mid.weight": "Tucker decomposition (of convolutions)",
    "hada_t1": "Tucker decomposition (of convolutions)",
    "hada_t2": "Tucker decomposition (of convolutions)",
    "lokr_t2": "Tucker decomposition (of convolutions)",
    "diff": "full weights",
    "diff_b": "trained biases",
    "oft_blocks": "OFT",
    "oft_diag": "OFT",
    "a1.weight": "GLoRA",
    "on_input": "IA³",
    "w_norm": "trained norms",
}


@dataclass(frozen=True, slots=True)
class _Module:
    """One flattened module: its tensors by their name after the dot, rank and alpha."""

    parts: Mapping[str, LazyTensor]
    rank: int
    alpha: float


def recognises(listing: Listing) -> bool:
    return bool(_files(listing))


def _files(listing: Listing) -> list[str]:
    """The names of kohya's files in the directory; reads headers, raises nothing."""
    if CONFIG in listing.names:
        return []
    found = sorted(n for n in listing.names if n.endswith(".safetensors"))
    return [n for n in found[:_MAX_FILES] if not _OTHERS.fullmatch(n) and _is_one(listing, n)]


def _is_one(listing: Listing, name: str) -> bool:
    keys = listing.tensor_names(name)
    if keys is None:
        # A damaged file of that name is to be called damaged, not unknown.
        return _NAMED.fullmatch(name) is not None
    return any(_MARKS.match(key) for key in keys)


def read(listing: Listing) -> RawAdapter:
    """Tensors' headers and each module's alpha; raises ArtifactError subclasses."""
    found = _files(listing)
    if len(found) != 1:
        if not found:
            raise UnknownFormat(
                f"{listing.path} has no .safetensors file with kohya's names "
                "(lora_…lora_down.weight); give the file itself"
            )
        raise AmbiguousFormat(
            f"{listing.path} holds {len(found)} files with kohya's names ({', '.join(found[:3])}); "
            "give one file itself"
        )
    path = listing.path / found[0]
    kind, modules = _sorted(tensors.read_safetensors(path))
    for module in modules.values():
        if "dora_scale" in module.parts:
            raise NotServable(
                f"'{module.parts['dora_scale'].name}': this is LyCORIS's DoRA, which is not "
                "supported; merge it with LyCORIS and register the model that it gives"
            )
    lycoris = kind != "lora" or any(stem.startswith("lycoris_") for stem in modules)
    raw = RawAdapter(
        format="kohya",
        config=_config(kind, modules),
        tensors=_named(kind, modules),
        provenance=Provenance(
            source=listing.path, files=(path,), trainer="LyCORIS" if lycoris else "kohya"
        ),
    )
    return replace(raw, for_base=partial(_for_base, raw, kind, modules))


def _sorted(found: Mapping[str, LazyTensor]) -> tuple[str, dict[str, _Module]]:
    """The tensors by flattened module, and which of the three methods all of them are."""
    by_stem: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in found.items():
        key = _KEY.fullmatch(name)
        if key is None:
            raise InvalidConfig(
                f"tensor '{name}' has none of kohya's names (PREFIX_module.lora_down.weight)"
            )
        _refuse(name, key["stem"], key["part"])
        by_stem.setdefault(key["stem"], {})[key["part"]] = tensor
    kinds = {
        kind: next(iter(parts[part].name for part in names if part in parts))
        for parts in by_stem.values()
        for kind, names in _PARTS.items()
        if any(part in parts for part in names)
    }
    if len(kinds) != 1:
        seen = ", ".join(f"'{name}'" for name in kinds.values()) or "only alphas"
        raise InvalidConfig(
            f"the file holds {seen}; one of LoRA, LoHa and LoKr for all modules is supported"
        )
    kind = next(iter(kinds))
    return kind, {stem: _module(kind, parts) for stem, parts in by_stem.items()}


def _refuse(name: str, stem: str, part: str) -> None:
    if _IMAGE.match(stem):
        raise NotServable(
            f"tensor '{name}' changes an image model: this is an adapter for Stable Diffusion or "
            "its kin, and only language models are served here"
        )
    if part in _REFUSED:
        raise UnknownFormat(
            f"tensor '{name}' is LyCORIS's {_REFUSED[part]}, which is not read from this format; "
            "merge it into the base with LyCORIS and serve the result"
        )


def _module(kind: str, parts: dict[str, LazyTensor]) -> _Module:
    rank = _rank(kind, parts)
    stored = parts.pop("alpha", None)
    if stored is not None and not parts:
        raise DamagedArtifact(
            f"'{stored.name}' is there without its module's factors: part of the adapter is missing"
        )
    alpha = 0.0 if stored is None else _scalar(stored)
    # LyCORIS ignores alpha where LoKr trains both matrices whole: there is no rank to divide by.
    whole = kind == "lokr" and {"lokr_w1", "lokr_w2"} <= parts.keys()
    return _Module(parts, rank, float(rank) if alpha == 0 or whole else alpha)


def _rank(kind: str, parts: Mapping[str, LazyTensor]) -> int:
    """The inner size; what is wrong with shapes is said later, of each tensor."""
    inner = {
        "lora": (("lora_up.weight", 1), ("lora_down.weight", 0)),
        "loha": (("hada_w1_a", 1), ("hada_w1_b", 0)),
        "lokr": (("lokr_w2_a", 1), ("lokr_w1_a", 1)),
    }
    for part, axis in inner[kind]:
        if part in parts and len(parts[part].shape) > axis:
            return max(1, parts[part].shape[axis])
    return 1


def _scalar(tensor: LazyTensor) -> float:
    if tensor.count != 1 or tensor.dtype not in ("F64", "F32", "F16", "BF16", "I64", "I32"):
        raise InvalidConfig(
            f"tensor '{tensor.name}' is {tensor.dtype} of shape {list(tensor.shape)}; an alpha is "
            "one number"
        )
    alpha = float(tensor.load().item())
    if not math.isfinite(alpha) or alpha < 0:
        raise InvalidConfig(
            f"tensor '{tensor.name}' is {alpha:g}; an alpha is a finite number of at least 0"
        )
    return alpha


def _config(kind: str, modules: Mapping[str, _Module]) -> dict[str, Any]:
    config = translate.tuner_config(
        kind.upper(),
        ranks={module: found.rank for module, found in modules.items()},
        alphas={module: found.alpha for module, found in modules.items()},
    )
    if kind == "lokr":
        config["lokr_sides"] = measured_sides({m: f.parts for m, f in modules.items()})
    return config


def _named(kind: str, modules: Mapping[str, _Module]) -> dict[str, LazyTensor]:
    """The tensors under PEFT's names, the modules' still flattened or not."""
    names = _PARTS[kind]
    return {
        f"{module}.{names.get(part, part)}": tensor
        for module, found in modules.items()
        for part, tensor in found.parts.items()
    }


def _for_base(
    raw: RawAdapter, kind: str, modules: Mapping[str, _Module], base: BaseDescriptor
) -> RawAdapter:
    flattened: dict[str, list[str]] = {}
    for spec in base.modules:
        flattened.setdefault(spec.name.replace(".", "_"), []).append(spec.name)
    unfolded: dict[str, _Module] = {}
    for stem, found in modules.items():
        module = _unflattened(stem, flattened)
        if module in unfolded:
            raise BaseMismatch(f"'{stem}' and another module's name both stand for '{module}'")
        unfolded[module] = found
    return replace(
        raw, config=_config(kind, unfolded), tensors=_named(kind, unfolded), for_base=None
    )


def _unflattened(stem: str, flattened: Mapping[str, list[str]]) -> str:
    """The base's module; without one the name without prefix stays, for the refusal to show it."""
    plain = [stem.removeprefix(prefix) for prefix in _PREFIXES if stem.startswith(prefix)]
    found = sorted({module for name in plain for module in flattened.get(name, ())})
    if len(found) > 1:
        raise BaseMismatch(
            f"'{stem}' stands for {' or '.join(repr(name) for name in found[:3])} of the base; "
            "flattened names do not tell them apart: save the adapter with PEFT"
        )
    return found[0] if found else plain[0]
