"""From a directory to a verdict (`examine`) or to what the store keeps (`take_in`).

Both go the same way: find the directory, tell the format, tell the method, plan (every tensor
against config and base, from headers alone), prove (read the values), and only then write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from adapters.errors import ArtifactError, BaseError, BaseMismatch, NotHotServable
from adapters.frozen import Lane
from adapters.intake.base_names import quantized_note, same_model
from adapters.intake.canonical import write_canonical
from adapters.intake.formats import read_artifact
from adapters.intake.hot import hot_reasons, idle_note, pair_faults, prove_pairs
from adapters.intake.lora import LoraPlan
from adapters.intake.mapping import leaf_names
from adapters.intake.merged import prove_merge, write_stored
from adapters.intake.merging import MergePlan
from adapters.intake.method import Method
from adapters.intake.methods import method_name, recognise, refusal_of
from adapters.intake.provenance import source_sha256
from adapters.intake.raw import RawAdapter
from adapters.intake.routing import approximated, check_rank, compared, plan_artifact
from adapters.intake.tensors import item_size
from adapters.models import Approximate, Approximation, BaseDescriptor, Inspection, Manifest

Progress = Callable[[int, int], None]
Plan = LoraPlan | MergePlan


def take_in(
    source: Path,
    *,
    base: BaseDescriptor,
    staging: Path,
    format: str | None,
    alpha: float | None = None,
    approximate: Approximate | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Check the artifact in `source` against `base` and write what is kept of it into `staging`.

    That is the canonical form for the hot lane, the merge form for the merged one. `alpha` is what
    an artifact that stores none was trained with. `progress` is called with bytes done and bytes
    in all. Raises ArtifactError subclasses with one sentence; what is in `staging` then means
    nothing. With `approximate` a full fine-tune becomes a plain LoRA of that rank; UsageError for
    what has no need of it.
    """
    check_rank(approximate)
    raw = read_artifact(source, format, alpha)
    method, evidence = recognise(raw)
    plan: Plan
    if approximate is not None:
        extracting, progress = _two_parts(progress)
        plan = approximated(raw, method, evidence, base, approximate, staging, extracting)
    else:
        plan = plan_artifact(raw, method, evidence, base)
        _raise_first(plan.problems)
        plan = compared(raw, method, base, plan)
    _raise_first(plan.problems)
    found, from_trainer = _facts(plan, base), raw.provenance
    # Hashing lets other threads run, and takes as long as all the rest.
    with ThreadPoolExecutor(1, "source-sha256") as pool:
        hashing = pool.submit(source_sha256, from_trainer.files)
        notes = _take(plan, base, staging, progress)
        digest = hashing.result()
    return Manifest(
        format=raw.format,
        method=method_name(method, raw),
        lane=found.lane,
        reasons=found.reasons,
        rank=found.rank,
        targets=found.targets,
        parameters=found.parameters,
        scale=plan.scale,
        base_digest=base.digest,
        base_by_trainer=from_trainer.base_by_trainer,
        trainer=from_trainer.trainer,
        trainer_version=from_trainer.trainer_version,
        source=str(source),
        source_sha256=digest,
        notes=from_trainer.notes + plan.notes + notes,
        approximation=_approximation(plan, digest),
        tensor_dtypes=tuple(sorted({tensor.dtype for tensor in raw.tensors.values()})),
    )


def _approximation(plan: Plan, extracted_from: str | None = None) -> Approximation | None:
    found = plan.approximation if isinstance(plan, LoraPlan) else None
    return found and found.model_copy(update={"extracted_from": extracted_from})


def _take(
    plan: Plan, base: BaseDescriptor, staging: Path, progress: Progress | None
) -> tuple[str, ...]:
    """Prove and write; notes about what was seen."""
    if isinstance(plan, MergePlan):
        size = sum(tensor.count * item_size(tensor.dtype) for tensor in plan.uses.values())
        advance = _advance(2 * size, progress)
        plan, notes = prove_merge(plan, base, advance)
        write_stored(plan, staging, advance)
        return notes
    advance = _advance(2 * sum(pair.size_bytes for pair in plan.pairs), progress)
    proved = prove_pairs(plan, base, advance)
    write_canonical(proved, staging, advance)
    return idle_note(proved)


class _Facts(NamedTuple):
    """What a right plan says of the artifact."""

    lane: Lane
    reasons: tuple[str, ...]
    rank: int | None
    targets: tuple[str, ...]
    parameters: int


def _facts(plan: Plan, base: BaseDescriptor) -> _Facts:
    if isinstance(plan, MergePlan):
        targets = leaf_names(edit.module for edit in plan.edits)
        return _Facts(Lane.MERGED, (plan.reason, *plan.more), plan.rank, targets, plan.parameters)
    return _Facts(
        Lane.HOT,
        hot_reasons(plan, base),
        max(pair.rank for pair in plan.pairs),
        leaf_names(pair.module.name for pair in plan.pairs),
        sum(pair.parameters for pair in plan.pairs),
    )


def examine(
    source: Path,
    *,
    bases: Sequence[tuple[str, BaseDescriptor]],
    format: str | None,
    alpha: float | None = None,
    approximate: Approximate | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """What the artifact is, which of `bases` it fits, how it would be served, what is wrong.

    Whatever is wrong with the artifact is in the answer's `problems`; nothing is raised for it.
    With `approximate`, what a plain LoRA of that rank would keep, as in `take_in`.
    """
    check_rank(approximate)
    try:
        raw = read_artifact(source, format, alpha)
    except ArtifactError as fault:
        return _inspection(problems=(fault.message,))
    try:
        method, evidence = recognise(raw)
    except ArtifactError as fault:
        return _inspection(raw, problems=(fault.message,))
    refusal = refusal_of(method, evidence, raw)
    if refusal is not None:
        return _inspection(
            raw, method, lane=method.lane, reasons=(refusal.message,), problems=(refusal.message,)
        )
    if not bases:
        why = "there is no base to check it against; add one with 'adapterctl base add'"
        return _inspection(raw, method, problems=(why,))
    return _best_fit(raw, method, evidence, bases, approximate, progress)


def _best_fit(
    raw: RawAdapter,
    method: Method,
    evidence: str,
    bases: Sequence[tuple[str, BaseDescriptor]],
    approximate: Approximate | None,
    progress: Progress | None,
) -> Inspection:
    """Examine against every base and answer for the one that fits (or comes nearest)."""
    plans: list[tuple[str, BaseDescriptor, Plan]] = []
    for name, base in bases:
        try:
            plans.append((name, base, plan_artifact(raw, method, evidence, base)))
        except ArtifactError as fault:
            return _inspection(raw, method, problems=(fault.message,))
        except BaseError as fault:
            if len(bases) == 1:
                raise
            # Its files are gone; another may fit.
            lost = LoraPlan(pairs=(), scale="", problems=(BaseMismatch(fault.message),), notes=())
            plans.append((name, base, lost))
    hint = raw.provenance.base_by_trainer
    name, base, plan = min(
        plans,
        key=lambda item: (
            len(item[2].problems),
            not same_model(item[0], hint),
            isinstance(item[2], MergePlan),
        ),
    )
    if approximate is not None and not plan.problems:
        hear = progress or _ignore
        plan = approximated(raw, method, evidence, base, approximate, None, hear)
    plan, faults = _value_faults(raw, method, base, plan)
    facts = None if faults else _facts(plan, base)
    fits = [other for other, _, its in plans if not its.problems]
    reasons = list(facts.reasons) if facts is not None else []
    reasons.extend(quantized_note(hint))
    if len(fits) > 1:
        reasons.append(f"its shapes also fit: {', '.join(n for n in fits if n != name)}")
    if not same_model(name, hint) and any(same_model(other, hint) for other, _ in bases):
        reasons.append(f"its trainer named another base: {hint}")
    return _inspection(
        raw,
        method,
        base=name if not plan.problems or len(bases) == 1 else None,
        lane=facts.lane if facts is not None else _lane_of(faults),
        reasons=tuple(reasons),
        problems=tuple(fault.message for fault in faults),
        plan=plan,
    )


def _value_faults(
    raw: RawAdapter, method: Method, base: BaseDescriptor, plan: Plan
) -> tuple[Plan, tuple[ArtifactError, ...]]:
    """The plan in the end, and what is wrong with it: by headers, else by its values."""
    try:
        plan = plan if plan.problems else compared(raw, method, base, plan)
        if plan.problems:
            return plan, plan.problems
        if isinstance(plan, LoraPlan):
            return plan, pair_faults(plan, base)
        prove_merge(plan, base, lambda count: None)
    except ArtifactError as fault:
        return plan, (fault,)
    return plan, ()


def _lane_of(faults: Sequence[ArtifactError]) -> Lane | None:
    """Merged if all that is wrong is that no plain LoRA expresses it, which is not merged yet."""
    return Lane.MERGED if all(isinstance(f, NotHotServable) for f in faults) else None


def _inspection(
    raw: RawAdapter | None = None,
    method: Method | None = None,
    *,
    base: str | None = None,
    lane: Lane | None = None,
    reasons: tuple[str, ...] = (),
    problems: tuple[str, ...] = (),
    plan: Plan | None = None,
) -> Inspection:
    approximation = _approximation(plan) if plan is not None else None
    declared = raw.config.get("r") if raw is not None else None
    rank = declared if type(declared) is int else None
    targets: tuple[str, ...] = ()
    if isinstance(plan, MergePlan):
        rank, targets = plan.rank, leaf_names(edit.module for edit in plan.edits)
    elif plan is not None:
        rank = max((pair.rank for pair in plan.pairs), default=rank)
        targets = leaf_names(pair.module.name for pair in plan.pairs)
    return Inspection(
        format=raw.format if raw is not None else None,
        method=method_name(method, raw) if method is not None and raw is not None else None,
        rank=rank,
        base=base,
        lane=lane,
        reasons=reasons,
        problems=problems,
        targets=targets,
        base_by_trainer=raw.provenance.base_by_trainer if raw is not None else None,
        trainer=raw.provenance.trainer if raw is not None else None,
        approximate=approximation is not None,
        approximation=approximation,
    )


def _raise_first(problems: Sequence[ArtifactError]) -> None:
    if not problems:
        return
    first, others = problems[0], len(problems) - 1
    if others == 0:
        raise first
    faults = "1 other fault" if others == 1 else f"{others} other faults"
    raise type(first)(f"{first.message}; 'adapterctl inspect' lists {faults}")


def _ignore(done: int, total: int) -> None:
    pass


def _two_parts(progress: Progress | None) -> tuple[Progress, Progress]:
    """One bar for work in two parts: the first takes nine tenths of it."""
    hear = progress or _ignore

    def first(done: int, total: int) -> None:
        hear(9 * done, 10 * total)

    def second(done: int, total: int) -> None:
        hear(9 * total + done, 10 * total)

    return first, second


def _advance(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        if progress is not None:
            progress(done, total)

    return advance
