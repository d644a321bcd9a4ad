"""From a method to a plan: hot where it can be, else merged with the reason why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.errors import ArtifactError, BaseNotAtHand, NotHotServable, UsageError
from adapters.intake.lora import LoraPlan
from adapters.intake.merging import MergePlan, edits_of_pairs
from adapters.intake.method import Method
from adapters.intake.methods import refusal_of, why_merged
from adapters.intake.peft_config import MAX_RANK
from adapters.intake.raw import RawAdapter
from adapters.intake.tied import apart
from adapters.models import Approximate, BaseDescriptor

# What a config says about the training or the saving and not about the result.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "fine_tune_type",
        "inference_mode",
        "peft_version",
        "revision",
        "task_type",
    }
)
_SETS = ("target_modules", "exclude_modules", "layers_to_transform")


def plan_artifact(
    raw: RawAdapter, method: Method, evidence: str, base: BaseDescriptor
) -> LoraPlan | MergePlan:
    """What will be written for `base`, from headers alone.

    Raises the refusal of a method without a plan, and InvalidConfig.
    """
    refusal = refusal_of(method, evidence, raw)
    if refusal is not None:
        raise refusal
    try:
        placed = for_base(raw, base)
    except ArtifactError as fault:
        # Of this base only: another may fit.
        return LoraPlan(pairs=(), scale="", problems=(fault,), notes=())
    if method.to_lora is None:
        return _merge(method, placed, base)
    plan = method.to_lora(placed, base)
    return _merge_instead(method, placed, base, plan) or plan


def compared(
    raw: RawAdapter, method: Method, base: BaseDescriptor, plan: LoraPlan | MergePlan
) -> LoraPlan | MergePlan:
    """The plan after its copies of base weights were read: a changed one needs the merged lane.

    Raises ArtifactError.
    """
    try:
        for compare in plan.copies:
            compare()
    except NotHotServable as fault:
        if method.to_merge is None or isinstance(plan, MergePlan):
            raise
        return replace(_merge(method, for_base(raw, base), base), reason=fault.message)
    return plan


def approximated(
    raw: RawAdapter,
    method: Method,
    evidence: str,
    base: BaseDescriptor,
    rank: Approximate,
    scratch: Path | None,
    progress: Callable[[int, int], None],
) -> LoraPlan:
    """A plain LoRA that comes near the artifact; see `extract`. Raises UsageError for a method
    that has none, and ArtifactError."""
    refusal = refusal_of(method, evidence, raw)
    if refusal is not None:
        raise refusal
    if method.to_approximation is None:
        raise UsageError(
            f"--approximate is for a full fine-tune; this is {method.title}: leave it out, the "
            "lane is then chosen without approximating anything"
        )
    return method.to_approximation(for_base(raw, base), base, rank, scratch, progress)


def check_rank(rank: Approximate | None) -> None:
    """Raises UsageError for a rank that no engine takes."""
    if rank is not None and rank != "auto" and not 1 <= rank <= MAX_RANK:
        raise UsageError(f"--approximate takes a rank of 1 to {MAX_RANK} or auto, not {rank}")


def merge_plan(raw: RawAdapter, method: Method, base: BaseDescriptor) -> MergePlan | None:
    """The artifact as a merge even where it could be hot; None if it has no such plan."""
    placed = for_base(raw, base)
    if method.to_merge is not None:
        return _merge(method, placed, base)
    if method.to_lora is None:
        return None
    plan = method.to_lora(placed, base)
    return _pairs_merged(placed, base, plan) if plan.uses else None


def for_base(raw: RawAdapter, base: BaseDescriptor) -> RawAdapter:
    """The artifact translated to the end; raises ArtifactError."""
    return raw if raw.for_base is None else raw.for_base(base)


def _merge(method: Method, raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    assert method.to_merge is not None, "a row of METHODS has a refusal or a plan"
    plan = method.to_merge(raw, base)
    if plan.reason or method.refusal is None:
        return plan
    return replace(plan, reason=why_merged(method))


def _merge_instead(
    method: Method,
    raw: RawAdapter,
    base: BaseDescriptor,
    plan: LoraPlan,
) -> MergePlan | None:
    """The same as a merge if nothing is wrong but that no engine takes it as a LoRA."""
    if not plan.problems or any(isinstance(fault, BaseNotAtHand) for fault in plan.problems):
        return None
    if not all(isinstance(fault, NotHotServable) for fault in plan.problems):
        # What is wrong for the one can be right for the other: embeddings with added rows.
        merge = _merge(method, raw, base) if method.to_merge is not None else None
        return merge if merge is not None and merge.reason and not merge.problems else None
    reason = "; ".join(fault.message for fault in plan.problems)
    if method.to_merge is not None:
        return replace(_merge(method, raw, base), reason=reason)
    return replace(_pairs_merged(raw, base, plan), reason=reason) if plan.uses else None


def _pairs_merged(raw: RawAdapter, base: BaseDescriptor, plan: LoraPlan) -> MergePlan:
    edits, base_config = apart(edits_of_pairs(plan.pairs), base)
    others = tuple(fault for fault in plan.problems if not isinstance(fault, NotHotServable))
    return MergePlan(
        edits=edits,
        uses=plan.uses,
        config=reduced(raw.config),
        problems=others,
        notes=plan.notes,
        reason=plan.reason,
        scale=plan.scale,
        rank=max((pair.rank for pair in plan.pairs), default=None),
        copies=plan.copies,
        base_config=base_config,
    )


def reduced(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what does not change the result, its sets in one order."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if key in _WITHOUT_EFFECT or key.endswith("dropout") or value in (None, "", [], {}):
            continue
        is_set = key in _SETS and isinstance(value, list)
        kept[key] = sorted(value, key=str) if is_set else value
    return kept
