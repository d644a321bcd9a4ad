"""LoRA on the experts of a mixture: three layouts on disk, one meaning, merged into the base.

Of an expert's gate, up and down [out, in], each has W + scale · B·A. On disk the factors lie

* a matrix each: `X.experts.<expert>.<leaf>.lora_A.weight` [r, in] (PEFT up to transformers 4),
* stacked by projection: `X.experts.<leaf>.lora_A.weight` [E, r, in], B [E, out, r], either with
  one entry for all experts (mlx-lm's SwitchLinear once renamed, Tinker),
* stacked by parameter (PEFT's `target_parameters`): A [E·r, in], expert by expert, and B
  [out, r·E], rank by rank (peft/tuners/lora/layer.py, ParamWrapper.get_delta_weight). PEFT nests:
  with both parameters `X.experts.base_layer` is gate_up_proj and `X.experts` down_proj; one alone
  is `X.experts`, whichever it is. gate_up_proj's out is gate above up.

All become pairs of one expert's matrix, and edits in the layout in which the base has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapters.errors import (
    BaseMismatch,
    DamagedArtifact,
    InvalidConfig,
    NotHotServable,
    NotServable,
)
from adapters.intake.expert_edits import edits_with_experts, matrices
from adapters.intake.expert_stacks import Stack, recently, stack_pairs
from adapters.intake.findings import Findings
from adapters.intake.lora import LoraPair, LoraPlan, plan_lora
from adapters.intake.mapping import PREFIX, LoraKey, parse_lora_key
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import LoraSettings, ModuleScale, describe_scale, parse_settings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.routers import covered, target_parameters, with_routers
from adapters.models import BaseDescriptor, ExpertsSpec, ModuleSpec

if TYPE_CHECKING:
    pass

_BLOCK = re.compile(r"(?P<block>.+\.experts)(?:\.(?P<expert>\d+))?(?:\.(?P<leaf>[^.]+))?")
_INNER = "base_layer"
# Mixtral's names, Tinker's and mlx-lm's: the same three everywhere.
_GATE, _UP, _DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")
_KEPT = (
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "use_rslora",
)


@dataclass
class _Layer:
    """What was found for the experts of one layer: PEFT's two stacks, and those by projection."""

    spec: ExpertsSpec
    outer: Stack | None = None
    inner: Stack | None = None
    projections: dict[str, Stack] = field(default_factory=dict)


@dataclass
class _Sorted:
    """The artifact's tensors: stacks by layer, and `rest`, all that are no stack."""

    layers: dict[str, _Layer] = field(default_factory=dict)
    rest: dict[str, LazyTensor] = field(default_factory=dict)
    # A matrix for each expert somewhere?
    matrices: bool = False


def plan_experts(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """The edits of an adapter with experts among its targets; reads no tensor data.

    Raises InvalidConfig for a config that cannot be used at all; everything else is collected in
    the plan's problems.
    """
    settings = parse_settings(raw.config)
    findings = Findings()
    if not base.experts:
        findings.add("no experts", _no_experts(base))
        return _plan(raw, base, (), None, "", findings)
    found = _sort(raw, base, findings)
    stacked, scales = _stacked(found, settings, raw, findings)
    plan = _others(raw, base, found, settings, findings)
    pairs = (*stacked, *(plan.pairs if plan is not None else ()))
    scale = describe_scale(scales, rslora=settings.rslora) if scales else ""
    return _plan(raw, base, pairs, plan, scale, findings)


def _no_experts(base: BaseDescriptor) -> NotServable | BaseMismatch:
    if any(re.search(r"\.experts(\.|$)", name) for name in base.parameters):
        return NotServable(
            f"LoRA on the experts of {base.architecture}, or of weights that lie as this base's, "
            "is not supported (if the base was added by an earlier version, add it again)"
        )
    return BaseMismatch("it has factors for experts, which the base does not have")


def _sort(raw: RawAdapter, base: BaseDescriptor, findings: Findings) -> _Sorted:
    blocks = {name: spec for spec in base.experts for name in (spec.name, spec.stored)}
    found = _Sorted()
    for name, tensor in raw.tensors.items():
        key = parse_lora_key(name)
        place = _BLOCK.fullmatch(key.module) if key is not None else None
        spec = blocks.get(place["block"]) if place is not None else None
        if key is None or place is None or spec is None:
            found.rest[name] = tensor
        elif place["expert"] is not None:
            found.matrices = True
            found.rest[name] = tensor
        else:
            layer = found.layers.setdefault(spec.name, _Layer(spec))
            _enter(layer, place["leaf"], key, tensor, findings)
    return found


def _enter(
    layer: _Layer, leaf: str | None, key: LoraKey, tensor: LazyTensor, findings: Findings
) -> None:
    spec = layer.spec
    if leaf is None:
        # Which parameter it is shows when it is known whether there is an inner one.
        stack = layer.outer = layer.outer or Stack(spec, (spec.down,), flat=True)
    elif leaf == _INNER:
        stack = layer.inner = layer.inner or Stack(spec, (spec.gate, spec.up), flat=True)
    else:
        part = _part(spec, leaf)
        if part is None:
            known = ", ".join(_GATE + _UP + _DOWN)
            text = f"tensor '{tensor.name}': '{leaf}' is no part of an expert; they are {known}"
            findings.add("part", BaseMismatch(text))
            return
        stack = layer.projections.setdefault(key.module, Stack(spec, (part,), flat=False))
    there = stack.a if key.side == "A" else stack.b
    if there is not None:
        text = f"'{there.name}' and '{tensor.name}' are both lora_{key.side} of one stack"
        findings.add("twice", DamagedArtifact(f"{text}; one too many"))
    elif key.side == "A":
        stack.a = tensor
    else:
        stack.b = tensor


def _part(spec: ExpertsSpec, leaf: str) -> str | None:
    """The checkpoint's name of what `leaf` calls by any of its names."""
    for names, own in ((_GATE, spec.gate), (_UP, spec.up), (_DOWN, spec.down)):
        if leaf in names:
            return own
    return None


def _stacked(
    found: _Sorted, settings: LoraSettings, raw: RawAdapter, findings: Findings
) -> tuple[list[LoraPair], dict[str, ModuleScale]]:
    """The pairs of all stacks, and the scale of each."""
    stacks: dict[str, Stack] = {}
    for layer in found.layers.values():
        stacks |= _parameters(layer, findings) | layer.projections
    scales = settings.scales(list(stacks))
    load = recently()
    pairs = [p for name, s in stacks.items() for p in stack_pairs(s, scales[name], load, findings)]
    seen: dict[str, LoraPair] = {}
    for pair in pairs:
        there = seen.setdefault(pair.module.name, pair)
        if there is not pair:
            text = f"'{there.a_name}' and '{pair.a_name}' both change '{pair.module.name}'"
            findings.add("twice", DamagedArtifact(f"{text}; one too many"))
    return pairs, scales


def _parameters(layer: _Layer, findings: Findings) -> dict[str, Stack]:
    """PEFT's stacks of the layer by the parameter that each is for.

    A stack that is alone is told by its sizes: the two parameters never have both alike.
    """
    spec, outer, inner = layer.spec, layer.outer, layer.inner
    both, down = f"{spec.name}.gate_up_proj", f"{spec.name}.down_proj"
    if inner is not None and outer is None:
        half = inner.a or inner.b
        assert half is not None, "a stack is entered with its first tensor"
        text = f"'{half.name}' is one of two stacks and there is no '{spec.name}.lora_A'"
        findings.add("nesting", DamagedArtifact(f"{text}: a part of the adapter is missing"))
    found = {} if inner is None else {both: inner}
    if outer is not None:
        upper = Stack(spec, (spec.gate, spec.up), flat=True, a=outer.a, b=outer.b)
        alone = inner is None and _sizes(outer) == upper.sizes
        found |= {both: upper} if alone else {down: outer}
    return found


def _sizes(stack: Stack) -> tuple[int, int] | None:
    a, b = stack.a, stack.b
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return None
    return a.shape[1], b.shape[0]


def _others(
    raw: RawAdapter,
    base: BaseDescriptor,
    found: _Sorted,
    settings: LoraSettings,
    findings: Findings,
) -> LoraPlan | None:
    """The plan of all that is no stack, experts' own matrices taken as modules of the base."""
    _check_parameters(found, raw, base, findings)
    _check_projections(found, settings, base, findings)
    modules = base.modules
    if found.matrices:
        modules += tuple(spec for spec, _ in matrices(base.experts))
    with_experts = base.model_copy(update={"modules": modules})
    placed, widened = with_routers(replace(raw, tensors=found.rest), with_experts)
    if found.rest:
        plan = plan_lora(placed, widened)
        for fault in plan.problems:
            # What an engine would not apply can be merged all the same.
            if not isinstance(fault, NotHotServable):
                findings.add(f"others {fault.message}", fault)
        if found.matrices and settings.targets is None:
            _check_complete(plan.pairs, base, findings)
        return plan
    absent = sorted(parse_settings(placed.config).targeted(widened.modules) or ())
    if absent:
        findings.add("declared but absent", _absent(absent[0]))
    return None


def _absent(name: str) -> DamagedArtifact:
    return DamagedArtifact(
        f"adapter_config.json targets '{name}', but there are no tensors for it; "
        "part of the adapter is missing"
    )


def _undeclared(name: str, key: str) -> InvalidConfig:
    return InvalidConfig(
        f"there are tensors for '{name}', which {key} in adapter_config.json does not cover: "
        "PEFT would ignore them"
    )


def _check_parameters(
    found: _Sorted, raw: RawAdapter, base: BaseDescriptor, findings: Findings
) -> None:
    """target_parameters and the stacks by parameter are the same."""
    declared = target_parameters(raw.config)
    if not declared:
        return
    there = {name for layer in found.layers.values() for name in _parameters(layer, Findings())}
    every = [
        f"{spec.name}.{leaf}" for spec in base.experts for leaf in ("gate_up_proj", "down_proj")
    ]
    wanted = {name for name in every if covered(name, declared)}
    for name in sorted(wanted - there):
        findings.add("declared but absent", _absent(name))
    for name in sorted(there - wanted):
        findings.add("present but not declared", _undeclared(name, "target_parameters"))


def _check_projections(
    found: _Sorted, settings: LoraSettings, base: BaseDescriptor, findings: Findings
) -> None:
    """target_modules and the stacks by projection are the same."""
    there = {name for layer in found.layers.values() for name in layer.projections}
    if not there:
        return
    leaves = {name.rpartition(".")[2] for name in there}
    places = {
        spec.stored if any(n.startswith(f"{spec.stored}.") for n in there) else spec.name
        for spec in base.experts
    }
    every = tuple(
        ModuleSpec(name=f"{place}.{leaf}", kind="linear", in_features=1, out_features=1)
        for place in sorted(places)
        for leaf in sorted(leaves)
    )
    targeted = settings.targeted(every)
    if targeted is None:
        return
    for name in sorted(targeted - there):
        findings.add("declared but absent", _absent(name))
    for name in sorted(there - targeted):
        findings.add("present but not declared", _undeclared(name, "target_modules"))


def _check_complete(pairs: Iterable[LoraPair], base: BaseDescriptor, findings: Findings) -> None:
    """Nothing says which experts were trained: then it is all of a layer's or none."""
    there = {pair.module.name for pair in pairs}
    for spec in base.experts:
        for leaf in (spec.gate, spec.up, spec.down):
            names = [f"{spec.stored}.{expert}.{leaf}" for expert in range(spec.count)]
            missing = [name for name in names if name not in there]
            if missing and len(missing) < len(names):
                text = f"there are no tensors for '{missing[0]}', while other experts have them"
                findings.add("incomplete", DamagedArtifact(f"{text}; the adapter is incomplete"))


def _plan(
    raw: RawAdapter,
    base: BaseDescriptor,
    pairs: tuple[LoraPair, ...],
    others: LoraPlan | None,
    scale: str,
    findings: Findings,
) -> MergePlan:
    keys = {name: key for name in raw.tensors if (key := parse_lora_key(name)) is not None}
    if not findings and not pairs:
        findings.add("empty", DamagedArtifact("the adapter holds no LoRA tensors"))
    tied = [p for p in pairs if p.module.kind == "embedding" or p.module.name == "lm_head"]
    if base.tied_embeddings and tied:
        text = f"'{tied[0].a_name}': beside LoRA on experts, none on tied embeddings is supported"
        findings.add("tied", NotServable(text))
    ordered = sorted(pairs, key=lambda pair: pair.module.name)
    return MergePlan(
        edits=edits_with_experts(ordered, base.experts),
        uses={_stored_name(key): raw.tensors[name] for name, key in keys.items()},
        config={key: raw.config[key] for key in _KEPT if raw.config.get(key)},
        problems=findings.errors(),
        notes=others.notes if others is not None else (),
        reason="vLLM's CPU engine applies no LoRA to the experts of a mixture",
        scale=scale or (others.scale if others is not None else ""),
        rank=max((pair.rank for pair in pairs), default=None),
        copies=others.copies if others is not None else (),
    )


def _stored_name(key: LoraKey) -> str:
    if key.embedding:
        return f"{PREFIX}{key.module}.lora_embedding_{key.side}"
    return f"{PREFIX}{key.module}.lora_{key.side}.weight"
