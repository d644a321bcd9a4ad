"""Tuners that change a module's weights by a rule of their own: from their tensors to edits.

What such tuners share is here: tensors sorted by module, every shape held against config and
base, one edit for each parameter that changes, the config that says the same again. What differs
(the names of the tensors, their shapes, the formula of the new weight) is a `RuleTuner`, one file
each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import ArtifactError, DamagedArtifact, NotHotServable, NotServable
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.frozen_copies import check_copies
from adapters.intake.lora import check_targets, load_finite
from adapters.intake.mapping import PREFIX, strip_prefix
from adapters.intake.merging import Edit, MergePlan, weight_of
from adapters.intake.peft_config import LoraSettings
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import check_parts, sort_parts
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

LINEAR = frozenset({"linear"})
# GPT-2's layer too: the weight is turned before and after the rule.
LINEAR_OR_CONV1D = frozenset({"linear", "conv1d"})


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one parameter: `apply(old, *indices, *parts)`, in `old`'s dtype.

    A weight comes and goes as [out, in] however the base keeps it. `indices` are parts of whole
    numbers, which no float must round; they come as they are.
    """

    parts: tuple[str, ...]
    apply: Callable[..., torch.Tensor]
    indices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One module's: every tensor it has, with its exact shape, and what they change.

    `changes` goes by the parameter's name in the module (`weight`, `bias`). `bounds` says which
    parts are indices and where each ends: for all of it, or for each of its rows.
    """

    shapes: Mapping[str, tuple[int, ...]]
    changes: Mapping[str, Change]
    bounds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RuleTuner:
    """What an artifact's config says: which tensors a module has and what they do.

    `parts` are all names a tensor may have after its module's, as PEFT stores them. `config` gives
    the keys, beside type and targets, that change the result for these modules.
    """

    title: str
    parts: tuple[str, ...]
    settings: LoraSettings
    # May raise an ArtifactError when config and module do not go together.
    rule: Callable[[ModuleSpec], Rule]
    config: Callable[[tuple[ModuleSpec, ...]], Mapping[str, Any]] = lambda modules: {}
    kinds: frozenset[str] = LINEAR
    scale: str = ""
    rank: int | None = None
    # Tensors that modules share, by their stored name; checked by the tuner.
    shared: Mapping[str, LazyTensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan_rules(
    raw: RawAdapter,
    base: BaseDescriptor,
    tuner: RuleTuner,
    modules: tuple[ModuleSpec, ...] | None = None,
) -> MergePlan:
    """Check every tensor against `tuner` and base; reads no tensor data.

    `modules` are those that can be targeted, by default all of the base's.
    """
    modules = base.modules if modules is None else modules
    findings = Findings()
    found, others = sort_parts(raw, modules, tuner, findings)
    copies = _copies(others, base, tuner, findings)
    edits: list[Edit] = []
    uses = dict(tuner.shared)
    for spec, parts in found.values():
        try:
            rule = tuner.rule(spec)
        except ArtifactError as fault:
            # Whether a config can be right depends on the module's size, so on the base.
            findings.add("module", fault)
            continue
        faults = check_parts(spec, parts, rule.shapes, rule.bounds)
        for kind, wrong in faults:
            findings.add(kind, wrong)
        if not faults:
            proved = {part: _proved(tensor, part, rule, spec) for part, tensor in parts.items()}
            edits += [_edit(leaf, rule, spec, proved, base) for leaf in rule.changes]
            uses |= {f"{PREFIX}{spec.name}.{part}": tensor for part, tensor in proved.items()}
    settings_base = base.model_copy(update={"modules": modules})
    notes = check_targets(tuner.settings, found.keys(), settings_base, findings)
    if not edits and not findings:
        findings.add("empty", DamagedArtifact(f"the adapter holds no {tuner.title} tensors"))
    if copies:
        notes.append("unchanged copies of the base's embeddings were left out")
    names = sorted(found)
    config = {"peft_type": raw.config["peft_type"], "target_modules": names}
    return MergePlan(
        edits=tuple(sorted(edits, key=lambda edit: edit.parameter)),
        uses=dict(sorted(uses.items())),
        # What the keys are of modules that cannot be right is of no interest to anybody.
        config=config if findings else config | dict(tuner.config(_specs(found, names))),
        problems=findings.errors(),
        notes=(*tuner.notes, *notes),
        reason=f"{tuner.title} changes weights of the base by more than a low-rank product",
        scale=tuner.scale,
        rank=tuner.rank,
        copies=copies,
        base_config=_untied(edits, base),
    )


def _specs(found: Mapping[str, tuple[ModuleSpec, Any]], names: list[str]) -> tuple[ModuleSpec, ...]:
    return tuple(found[name][0] for name in names)


def has_bias(base: BaseDescriptor, spec: ModuleSpec) -> bool:
    return f"{spec.name}.bias" in base.parameters


def per_module(
    values: Mapping[str, Any], modules: tuple[ModuleSpec, ...]
) -> tuple[Any, dict[str, Any]]:
    """A default and the modules that have another value, by full name: the same for equal values
    however the artifact's config said it."""
    first = values[modules[0].name]
    others = {m.name: values[m.name] for m in modules if values[m.name] != first}
    return first, others


def _edit(
    leaf: str,
    rule: Rule,
    spec: ModuleSpec,
    parts: Mapping[str, LazyTensor],
    base: BaseDescriptor,
) -> Edit:
    change = rule.changes[leaf]
    name, shape = f"{spec.name}.{leaf}", base.parameters.get(f"{spec.name}.{leaf}")
    turned = shape is None and spec.kind == "conv1d"
    if shape is None:
        _, shape = weight_of(spec)
    indices = tuple(parts[part] for part in change.indices)
    return Edit(
        parameter=name,
        shape=shape,
        inputs=tuple(parts[part] for part in change.parts),
        apply=partial(_applied, turned, change.apply, indices),
        reads=_read_by(name, base),
        module=spec.name,
    )


def _applied(
    turned: bool,
    apply: Callable[..., torch.Tensor],
    indices: tuple[LazyTensor, ...],
    old: torch.Tensor,
    *parts: torch.Tensor,
) -> torch.Tensor:
    whole = [tensor.load() for tensor in indices]
    new = apply(old.T if turned else old, *whole, *parts)
    return (new.T if turned else new).contiguous()


def _read_by(name: str, base: BaseDescriptor) -> str:
    """Where the base keeps the parameter: a tied head's weight is the embedding's."""
    if not (base.tied_embeddings and name.rpartition(".")[0].endswith("lm_head")):
        return name
    embedding = next(
        spec.name
        for spec in base.modules
        if spec.kind == "embedding" and spec.in_features == base.vocab_size
    )
    return f"{embedding}.weight"


def _untied(edits: list[Edit], base: BaseDescriptor) -> dict[str, Any]:
    """PEFT changes the head alone; merged, it can no longer be the embedding's weight."""
    apart = any(edit.reads != edit.parameter for edit in edits)
    return {"tie_word_embeddings": False} if apart else {}


def _proved(tensor: LazyTensor, part: str, rule: Rule, spec: ModuleSpec) -> LazyTensor:
    if part in rule.bounds:
        return replace(tensor, load=partial(indices_within, tensor, rule.bounds[part], spec.name))
    return replace(tensor, load=partial(load_finite, tensor))


def indices_within(tensor: LazyTensor, bounds: tuple[int, ...], where: str) -> torch.Tensor:
    """Whole numbers, each at least 0 and below its row's bound; raises DamagedArtifact."""
    values = tensor.load()
    for bound, row in zip(bounds, values.reshape(len(bounds), -1), strict=True):
        outside = tensors.outside(row, bound)
        if outside is not None:
            raise DamagedArtifact(
                f"tensor '{tensor.name}' points to {outside}; '{where}' has only {bound} there"
            )
    return values


def _copies(
    others: Mapping[str, LazyTensor], base: BaseDescriptor, tuner: RuleTuner, findings: Findings
) -> tuple[Callable[[], None], ...]:
    """`check_copies`; a whole weight that is no copy of the base's is more than the tuner's."""
    known = {spec.name for spec in base.modules}
    comparisons: list[Callable[[], None]] = []
    for name, tensor in others.items():
        parameter = strip_prefix(name).replace(".base_layer.", ".")
        module = parameter.rpartition(".")[0]
        is_weight = parameter.endswith(".weight") and module in known
        if module in base.embedding_weights or not (is_weight or parameter in base.parameters):
            comparisons += [
                partial(_same, compare, tuner)
                for compare in check_copies({name: tensor}, base, findings)
            ]
        else:
            findings.add(
                "whole weight",
                NotServable(
                    f"tensor '{tensor.name}' replaces a whole parameter of the base beside the "
                    f"{tuner.title}, which is not supported: merge the two with PEFT and register "
                    "the result as a full fine-tune"
                ),
            )
    return tuple(comparisons)


def _same(compare: Callable[[], None], tuner: RuleTuner) -> None:
    try:
        compare()
    except NotHotServable as fault:
        what = fault.message.partition(", which no plain LoRA")[0]
        raise NotServable(f"{what}, which is not supported beside {tuner.title}") from None
