"""Format loralib: a .pt of microsoft/LoRA's `lora_state_dict`, under any name and alone.

`X.lora_A` [r, in] and `X.lora_B` [out, r], the scale alpha/r with an alpha that is not stored: the
user gives it. A MergedLinear (the joint q, k, v of GPT-2) has an A for each of its n trained parts
below each other and their rows of B: ΔW's part i is B[i]·A[i] (loralib/layers.py, merge_AB). Which
parts were trained is not stored either, so all of them must be.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import AmbiguousFormat, InvalidConfig, UnknownFormat
from adapters.intake import tensors, translate
from adapters.intake.alpha import given_note
from adapters.intake.derived import on_the_diagonal
from adapters.intake.locate import CONFIG, Listing
from adapters.intake.mapping import ModuleIndex
from adapters.intake.raw import LazyTensor, Provenance, RawAdapter
from adapters.intake.translate import Factors

if TYPE_CHECKING:
    from adapters.models import BaseDescriptor

_FILE = re.compile(r".*\.(pt|pth|bin|ckpt)")
_SNIFF_BYTES = 8 << 20
_MAX_FILES = 16
# The examples of microsoft/LoRA save the state under this key, of a model wrapped for several GPUs.
_INSIDE = "model_state_dict"
_WRAPPER = "module."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])")


def recognises(listing: Listing) -> bool:
    return bool(_files(listing))


def _files(listing: Listing) -> list[str]:
    """The names of loralib's files in the directory; looks into them, raises nothing."""
    if CONFIG in listing.names:
        return []
    found = sorted(name for name in listing.names if _FILE.fullmatch(name))
    return [name for name in found[:_MAX_FILES] if _is_one(listing.path / name)]


def _is_one(path: Path) -> bool:
    """Does it name `X.lora_A` itself a tensor? Looks at the pickle's bytes, never runs it."""
    try:
        start = _names(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError):
        return False
    return b".lora_A" in start and b".lora_A." not in start


def _names(path: Path) -> bytes:
    """The part of a torch file where its tensors' names are."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return file.read(_SNIFF_BYTES)
        with zipfile.ZipFile(file) as archive:
            record = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if record is None:
                return b""
            with archive.open(record) as names:
                return names.read(_SNIFF_BYTES)


def read(listing: Listing) -> RawAdapter:
    """Tensors by name; raises ArtifactError subclasses."""
    found = _files(listing)
    if len(found) != 1:
        if not found:
            raise UnknownFormat(
                f"{listing.path} has no file of loralib's lora_state_dict (X.lora_A, X.lora_B); "
                "give the file itself"
            )
        raise AmbiguousFormat(
            f"{listing.path} holds {len(found)} files of loralib's ({', '.join(found[:3])}); "
            "give one file itself"
        )
    path = listing.path / found[0]
    factors, others = _sorted(tensors.read_pickle(path, inside=_INSIDE))
    raw = RawAdapter(
        format="loralib",
        config=translate.config_for(factors, dict.fromkeys(factors, 1.0)),
        tensors={**translate.named(factors), **others},
        provenance=Provenance(
            source=listing.path,
            files=(path,),
            trainer="loralib",
            notes=given_note(listing.alpha),
        ),
    )
    return replace(raw, for_base=partial(_for_base, raw, factors, others, listing.alpha))


def _sorted(
    found: Mapping[str, LazyTensor],
) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    factors: dict[str, Factors] = {}
    others: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        key = _LORA.fullmatch(name.removeprefix(_WRAPPER))
        if key is None:
            others[name.removeprefix(_WRAPPER)] = tensor
        else:
            translate.put(factors, key["module"], key["side"], tensor)
    return factors, others


def _for_base(
    raw: RawAdapter,
    factors: Mapping[str, Factors],
    others: Mapping[str, LazyTensor],
    alpha: float | None,
    base: BaseDescriptor,
) -> RawAdapter:
    if alpha is None:
        raise InvalidConfig(
            "loralib's files hold neither alpha nor a config; give the lora_alpha of the training "
            "with --alpha N ('alpha' in the admin API)"
        )
    index = ModuleIndex(base.modules)
    placed: dict[str, Factors] = {}
    scales: dict[str, float] = {}
    for module, found in factors.items():
        spec = index.by_name.get(module)
        # The rank of one part; a joint layer's A has several.
        scales[module] = alpha / found.rank
        if spec is None or spec.kind == "embedding":
            placed[module] = replace(found, embedding=spec is not None)
        else:
            placed[module] = _parted(found, spec.out_features)
    config: dict[str, Any] = translate.config_for(placed, scales)
    return replace(raw, config=config, tensors={**translate.named(placed), **others}, for_base=None)


def _parted(found: Factors, outputs: int) -> Factors:
    """A joint layer's parts as one pair; any other pair as it is, right or wrong."""
    a, b = found.a, found.b
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or b.count == 0:
        return found
    parts, rest = divmod(a.shape[0], b.shape[1])
    if parts < 2 or rest:
        return found
    if b.shape[0] < outputs and outputs * parts % b.shape[0] == 0:
        raise InvalidConfig(
            f"'{a.name}' and '{b.name}' train {parts} of the {outputs * parts // b.shape[0]} parts "
            "of a joint layer (MergedLinear with enable_lora), and which ones is not stored; merge "
            "the adapter with loralib, or train it with PEFT"
        )
    if b.shape[0] % parts:
        return found
    return replace(found, b=on_the_diagonal(b, parts))
