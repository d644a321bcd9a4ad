"""Tuners whose change is a low-rank product: from their tensors to plain LoRA pairs, all checked.

What such tuners share is here: tensors sorted by module, every shape held against config and
base, the rank that plain LoRA needs. What differs (the names of the tensors, their shapes, the
formulas of A and B) is a `Tuner`, one file each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import (
    ArtifactError,
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
)
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.frozen_copies import check_copies
from adapters.intake.lora import FLOATS, LoraPair, LoraPlan, check_targets, load_finite, not_hot
from adapters.intake.mapping import ModuleIndex, stored_name, strip_prefix
from adapters.intake.peft_config import MAX_RANK, LoraSettings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

# Any tuner's tensors, to tell a config of one tuner with another's tensors.
_TUNER_TENSOR = re.compile(
    r"\.(lora_|hada_|lokr_|p?vera_|ia3_l|oft_|boft_|miss_|hra_u|delora_|vblora_|gralora_|c3a_)"
)


@dataclass(frozen=True, slots=True)
class Factor:
    """A or B of a module: the parts it is made of, and how, in fp64."""

    parts: tuple[str, ...]
    make: Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One module's: every tensor it has, with its exact shape, and the pair they make.

    A rank of 0 means that the module is without effect and nothing is written for it.
    """

    rank: int
    shapes: Mapping[str, tuple[int, ...]]
    a: Factor
    b: Factor


@dataclass(frozen=True, slots=True)
class Tuner:
    """What an artifact's config says: which tensors a module has and what they mean.

    `parts` are all names a tensor may have after its module's.
    """

    title: str
    parts: tuple[str, ...]
    settings: LoraSettings
    scale: str
    # May raise an ArtifactError when config and module do not go together.
    rewrite: Callable[[ModuleSpec], Rewrite]
    kinds: frozenset[str] = frozenset({"linear"})


Found = dict[str, tuple[ModuleSpec, dict[str, LazyTensor]]]


def plan_rewriting(raw: RawAdapter, base: BaseDescriptor, tuner: Tuner) -> LoraPlan:
    """Check every tensor against `tuner` and base; reads no tensor data."""
    findings = Findings()
    found, others = _sort(raw, base, tuner, findings)
    copies = check_copies(others, base, findings)
    pairs: list[LoraPair] = []
    idle = 0
    for spec, parts in found.values():
        try:
            rewrite = tuner.rewrite(spec)
        except ArtifactError as fault:
            # Whether a config can be right depends on the module's size, so on the base.
            findings.add("module", fault)
            continue
        if not _check(spec, parts, rewrite, base, findings):
            continue
        if rewrite.rank == 0:
            idle += 1
        else:
            pairs.append(_pair(spec, parts, rewrite))
    notes = check_targets(tuner.settings, found.keys(), base, findings)
    if not pairs and not findings:
        findings.add("empty", DamagedArtifact(f"the adapter holds no {tuner.title} tensors"))
    if copies:
        notes.append("unchanged copies of the base's embeddings were left out")
    if idle:
        notes.append(f"{idle} modules of rank 0 were left out")
    return LoraPlan(
        pairs=tuple(sorted(pairs, key=lambda pair: pair.module.name)),
        scale=tuner.scale,
        problems=findings.errors(),
        notes=tuple(notes),
        copies=copies,
        uses={stored_name(name): raw.tensors[name] for name in raw.tensors if name not in others}
        if len(copies) == len(others)
        else {},
        reason=f"{tuner.title}'s change is a low-rank product, rewritten exactly as plain LoRA",
    )


def _sort(
    raw: RawAdapter, base: BaseDescriptor, tuner: Tuner, findings: Findings
) -> tuple[Found, dict[str, LazyTensor]]:
    """Tensors by module; and those that are none of this tuner's."""
    index = ModuleIndex(base.modules)
    names = "|".join(re.escape(part) for part in tuner.parts)
    pattern = re.compile(rf"(.+)\.({names})(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
    found: Found = {}
    others: dict[str, LazyTensor] = {}
    infixes: dict[str | None, str] = {}
    for name, tensor in raw.tensors.items():
        key = pattern.fullmatch(strip_prefix(name))
        if key is None:
            if _TUNER_TENSOR.search(name):
                findings.add("another tuner", _anothers(name, tuner))
            else:
                others[name] = tensor
            continue
        module, part, infix = key.groups()
        infixes.setdefault(infix, name)
        spec = index.by_name.get(module)
        if spec is None:
            findings.add("unknown module", _unknown(name, module, index))
        elif spec.kind not in tuner.kinds:
            findings.add("kind", _wrong_kind(name, spec, tuner))
        else:
            _put(found.setdefault(module, (spec, {}))[1], part, tensor, module, findings)
    if len(infixes) > 1:
        both = " and ".join(f"'{name}'" for name in list(infixes.values())[:2])
        findings.add(
            "infix", DamagedArtifact(f"the file mixes several adapters: {both}; save one by itself")
        )
    return found, others


def tuned_modules(raw: RawAdapter, parts: tuple[str, ...]) -> list[str]:
    """The modules that have tensors, whatever else is wrong with them; never none."""
    names = "|".join(re.escape(part) for part in parts)
    pattern = re.compile(rf"(.+)\.(?:{names})(?:\..+)?")
    found = {key[1] for name in raw.tensors if (key := pattern.fullmatch(strip_prefix(name)))}
    return sorted(found) or [""]


def _anothers(name: str, tuner: Tuner) -> InvalidConfig:
    return InvalidConfig(
        f"tensor '{name}' is none of {tuner.title}'s, which adapter_config.json says this is: "
        "config and tensors do not belong together"
    )


def _unknown(name: str, module: str, index: ModuleIndex) -> BaseMismatch:
    return BaseMismatch(
        f"tensor '{name}' is for '{module}', which the base does not have; {index.explain(module)}"
    )


def _wrong_kind(name: str, spec: ModuleSpec, tuner: Tuner) -> NotServable:
    return NotServable(
        f"tensor '{name}': '{spec.name}' of the base is of the kind {spec.kind}, for which "
        f"{tuner.title} is not supported"
    )


def _put(
    parts: dict[str, LazyTensor], part: str, tensor: LazyTensor, module: str, findings: Findings
) -> None:
    there = parts.setdefault(part, tensor)
    if there is not tensor:
        findings.add(
            "twice",
            DamagedArtifact(
                f"'{there.name}' and '{tensor.name}' are both {part} of '{module}'; one too many"
            ),
        )


def _check(
    spec: ModuleSpec,
    parts: Mapping[str, LazyTensor],
    rewrite: Rewrite,
    base: BaseDescriptor,
    findings: Findings,
) -> bool:
    """Are all of the module's tensors there, no other, each as it must be?

    True also for what is right and only not hot.
    """
    some = next(iter(parts.values()))
    extra = [part for part in parts if part not in rewrite.shapes]
    missing = [part for part in rewrite.shapes if part not in parts]
    faults: list[tuple[str, ArtifactError]] = []
    if extra:
        wanted = ", ".join(rewrite.shapes)
        faults.append(
            (
                "not declared",
                InvalidConfig(
                    f"by adapter_config.json '{spec.name}' has {wanted} and no "
                    f"'{parts[extra[0]].name}': config and tensors contradict each other"
                ),
            )
        )
    elif missing:
        faults.append(
            (
                "half",
                DamagedArtifact(
                    f"'{some.name}' has no {missing[0]} beside it: a part of the module is missing"
                ),
            )
        )
    for part, shape in rewrite.shapes.items():
        if part in parts and (fault := check_tensor(parts[part], shape, spec)) is not None:
            faults.append((f"{part} {type(fault).__name__}", fault))
    for kind, fault in faults:
        findings.add(kind, fault)
    reason = not_hot(spec, base)
    if reason is not None:
        leaf = spec.name.rpartition(".")[2]
        findings.add(f"not hot {leaf}", NotHotServable(f"'{some.name}': {reason}"))
    if rewrite.rank > MAX_RANK:
        findings.add("rank", _too_high(spec, rewrite.rank))
    return not faults


def _too_high(spec: ModuleSpec, rank: int) -> NotHotServable:
    return NotHotServable(
        f"as plain LoRA the change of '{spec.name}' needs rank {rank}; engines take ranks up to "
        f"{MAX_RANK}"
    )


def check_tensor(
    tensor: LazyTensor, shape: tuple[int, ...], spec: ModuleSpec | None = None
) -> ArtifactError | None:
    """What is wrong with the tensor's shape or dtype; None if nothing."""
    sizes: tuple[int, ...] = (spec.in_features, spec.out_features) if spec is not None else ()
    found, wanted = list(tensor.shape), list(shape)
    if found != wanted:
        if tensor.count == 0 or len(found) != len(wanted):
            return DamagedArtifact(f"tensor '{tensor.name}' has shape {found}; it must be {wanted}")
        axis = next(i for i, size in enumerate(wanted) if found[i] != size)
        where = f" for '{spec.name}' [{sizes[1]}, {sizes[0]}]" if spec is not None else ""
        text = (
            f"tensor '{tensor.name}' has shape {found}; by adapter_config.json and the base it "
            f"must be {wanted}{where}"
        )
        return BaseMismatch(text) if wanted[axis] in sizes else InvalidConfig(text)
    if tensor.dtype not in FLOATS:
        return DamagedArtifact(
            f"tensor '{tensor.name}' is {tensor.dtype}; factors are F16, BF16, F32 or F64"
        )
    return None


def _pair(spec: ModuleSpec, parts: Mapping[str, LazyTensor], rewrite: Rewrite) -> LoraPair:
    size = sum(tensor.count * tensors.item_size(tensor.dtype) for tensor in parts.values())
    a_sources = tuple(parts[part] for part in rewrite.a.parts)
    b_sources = tuple(parts[part] for part in rewrite.b.parts)
    return LoraPair(
        module=spec,
        rank=rewrite.rank,
        a_name=_named(a_sources, parts),
        b_name=_named(b_sources, parts),
        load_a=partial(_made, a_sources, rewrite.a.make),
        load_b=partial(_made, b_sources, rewrite.b.make),
        size_bytes=size,
    )


def _named(sources: tuple[LazyTensor, ...], parts: Mapping[str, LazyTensor]) -> str:
    return (sources or tuple(parts.values()))[0].name


def _made(sources: tuple[LazyTensor, ...], make: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The factor, computed in fp64 and rounded once: see `tensors.stored`."""
    loaded = [load_finite(source) for source in sources]
    made = make(*(tensors.wide(values) for values in loaded))
    return tensors.stored(made, loaded[0].dtype if loaded else None)
