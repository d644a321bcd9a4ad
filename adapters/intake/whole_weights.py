"""A full fine-tune in the merged lane: the parameters that differ from the base, as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.fine_tune import Counterpart, FineTune, hold_against, is_stored
from adapters.intake.lora import load_finite
from adapters.intake.mapping import PREFIX
from adapters.intake.merging import Edit, MergePlan
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.models import BaseDescriptor

if TYPE_CHECKING:
    import torch


def plan_whole_weights(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """Edits for the parameters that differ. To know which, both checkpoints are read through, a
    tensor at a time; equal parameters are left out of edits and stored form."""
    tune = hold_against(raw, base)
    if tune.problems:
        return _plan(tune, [], tune.problems)
    findings = Findings()
    for one, other in tune.equal:
        check_tied(one, other, findings)
    changed = [part for part in tune.parts if is_stored(raw) or _differs(part, findings)]
    if not (changed or tune.config or findings):
        findings.add("no effect", DamagedArtifact(NO_EFFECT))
    return _plan(tune, changed, findings.errors())


NO_EFFECT = (
    "every parameter equals the base's: the model was saved before training, or is the base itself"
)


def check_tied(one: LazyTensor, other: LazyTensor, findings: Findings) -> None:
    """A head beside the embedding that it is tied to says nothing of its own."""
    if not tensors.same_numbers(one.load(), other.load()):
        findings.add(
            "tied",
            InvalidConfig(
                f"config.json ties '{one.name}' to '{other.name}', but the file has other values "
                "for it; set tie_word_embeddings to false if they were trained apart"
            ),
        )


def _differs(part: Counterpart, findings: Findings) -> bool:
    try:
        tuned = load_finite(part.tuned)
    except ArtifactError as fault:
        findings.add("values", fault)
        return True
    return part.resized or not tensors.same_numbers(tuned, part.base.load())


def _plan(
    tune: FineTune, changed: list[Counterpart], problems: tuple[ArtifactError, ...]
) -> MergePlan:
    values = sum(part.tuned.count for part in changed)
    notes = [f"config.json differs in {', '.join(tune.config)}"] if tune.config else []
    if tune.resized is not None:
        before, after = (item.shape[0] for item in (tune.resized.base, tune.resized.tuned))
        notes.append(f"its vocabulary has {after} tokens, the base's {before}")
    if tune.files:
        notes.append(f"its own {', '.join(path.name for path in tune.files)} go with it")
    return MergePlan(
        edits=tuple(_edit(part) for part in changed),
        uses={f"{PREFIX}{part.parameter}": finite(part.tuned) for part in changed},
        config=_stored_config(tune.config),
        problems=problems,
        notes=tuple(notes),
        reason="it replaces whole weights of the base",
        more=(
            f"{len(changed)} of the {len(tune.parts)} parameters it holds differ from the base "
            f"({values:,} values); --approximate auto extracts a plain LoRA for the hot lane "
            "instead, and says what that loses",
        ),
        scale="whole weights",
        base_config=dict(tune.config),
        files=tune.files,
    )


def _stored_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """No `fine_tune_type`, by which mlx-lm's own directories are known."""
    return {"peft_type": "LORA", "whole_weights": True, "base_config": dict(config)}


def _edit(part: Counterpart) -> Edit:
    return Edit(
        parameter=part.parameter,
        shape=part.tuned.shape,
        inputs=(finite(part.tuned),),
        apply=_replaced,
        reads=None,
        module=part.parameter.rpartition(".")[0],
    )


def finite(tensor: LazyTensor) -> LazyTensor:
    """The tensor, which refuses to load a NaN."""
    return replace(tensor, load=partial(load_finite, tensor))


def _replaced(tuned: torch.Tensor) -> torch.Tensor:
    return tuned
