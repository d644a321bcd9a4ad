"""From a directory to a verdict (`examine`) or to the canonical form (`take_in`).

Both go the same way: find the directory, tell the format, tell the method, plan (every tensor
against config and base, from headers alone), prove (read the values), and only then write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adapters.errors import ArtifactError, DamagedArtifact, NotHotServable
from adapters.intake.canonical import ProvedPair, keep, prove, write_canonical
from adapters.intake.findings import Findings
from adapters.intake.formats import read_artifact
from adapters.intake.lora import LoraPair, LoraPlan
from adapters.intake.mapping import leaf_names
from adapters.intake.methods import Method, method_name, recognise, refusal_of
from adapters.intake.provenance import source_sha256
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor, Inspection, Lane, Manifest

Progress = Callable[[int, int], None]
# A 100 MB adapter stays far below 1 GB of memory; a larger one costs a second read instead.
HOLD_BYTES = 256 << 20
# Up to here no engine notices; above, the rank decides what every slot costs.
USUAL_RANK = 64


def take_in(
    source: Path,
    *,
    base: BaseDescriptor,
    staging: Path,
    format: str | None,
    progress: Progress | None = None,
) -> Manifest:
    """Check the artifact in `source` against `base` and write its canonical form into `staging`.

    `progress` is called with bytes done and bytes in all. Raises ArtifactError subclasses with
    one sentence; what is in `staging` then means nothing.
    """
    raw = read_artifact(source, format)
    method, evidence = recognise(raw)
    plan = _plan(method, evidence, raw, base)
    _raise_first(plan.problems)
    advance = _advance(2 * sum(pair.size_bytes for pair in plan.pairs), progress)
    proved = _prove(plan, base, advance)
    write_canonical(proved, staging, advance)
    from_trainer = raw.provenance
    return Manifest(
        format=raw.format,
        method=method_name(method, raw),
        lane=Lane.HOT,
        reasons=_hot_reasons(plan, base),
        rank=max(pair.rank for pair in plan.pairs),
        targets=leaf_names(pair.module.name for pair in plan.pairs),
        parameters=sum(pair.parameters for pair in plan.pairs),
        scale=plan.scale,
        base_digest=base.digest,
        base_by_trainer=from_trainer.base_by_trainer,
        trainer=from_trainer.trainer,
        trainer_version=from_trainer.trainer_version,
        source=str(source),
        source_sha256=source_sha256(from_trainer.files),
        notes=from_trainer.notes + plan.notes + _idle_note(proved),
        tensor_dtypes=tuple(sorted({tensor.dtype for tensor in raw.tensors.values()})),
    )


def examine(
    source: Path, *, bases: Sequence[tuple[str, BaseDescriptor]], format: str | None
) -> Inspection:
    """What the artifact is, which of `bases` it fits, how it would be served, what is wrong.

    Whatever is wrong with the artifact is in the answer's `problems`; nothing is raised for it.
    """
    try:
        raw = read_artifact(source, format)
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
    return _best_fit(raw, method, evidence, bases)


def _best_fit(
    raw: RawAdapter, method: Method, evidence: str, bases: Sequence[tuple[str, BaseDescriptor]]
) -> Inspection:
    """Examine against every base and answer for the one that fits (or comes nearest)."""
    plans: list[tuple[str, BaseDescriptor, LoraPlan]] = []
    for name, base in bases:
        try:
            plans.append((name, base, _plan(method, evidence, raw, base)))
        except ArtifactError as fault:
            return _inspection(raw, method, problems=(fault.message,))
    hint = raw.provenance.base_by_trainer
    name, base, plan = min(
        plans, key=lambda item: (len(item[2].problems), not _same_model(item[0], hint))
    )
    faults = plan.problems or _value_faults(plan, base)
    fits = [other for other, _, its in plans if not its.problems]
    reasons = [] if faults else list(_hot_reasons(plan, base))
    if len(fits) > 1:
        reasons.append(f"its shapes also fit: {', '.join(n for n in fits if n != name)}")
    if not _same_model(name, hint) and any(_same_model(other, hint) for other, _ in bases):
        reasons.append(f"its trainer named another base: {hint}")
    return _inspection(
        raw,
        method,
        base=name if not plan.problems or len(bases) == 1 else None,
        lane=_lane(faults),
        reasons=tuple(reasons),
        problems=tuple(fault.message for fault in faults),
        pairs=plan.pairs,
    )


def _hot_reasons(plan: LoraPlan, base: BaseDescriptor) -> tuple[str, ...]:
    """Why it is hot; and what a high rank costs, since every slot has the engine's maximum rank."""
    rank = max(pair.rank for pair in plan.pairs)
    if rank <= USUAL_RANK:
        return (plan.reason,)
    item = 4 if base.dtype == "float32" else 2
    sizes = sum(pair.module.in_features + pair.module.out_features for pair in plan.pairs)
    cost = f"{rank * sizes * item / (1 << 20):,.1f} MiB"
    return (
        plan.reason,
        f"its rank {rank} needs an engine of at least that maximum rank, which then allocates it "
        f"in every slot: {cost} a slot for these modules",
    )


def _same_model(name: str, hint: str | None) -> bool:
    """Does the trainer's `base_model_name_or_path` end in this base's name?"""
    return hint is not None and hint.rstrip("/").rpartition("/")[2].lower() == name.lower()


def _lane(faults: Sequence[ArtifactError]) -> Lane | None:
    """Hot without a fault, merged if all that is wrong is that no plain LoRA expresses it."""
    if not faults:
        return Lane.HOT
    return Lane.MERGED if all(isinstance(f, NotHotServable) for f in faults) else None


def _inspection(
    raw: RawAdapter | None = None,
    method: Method | None = None,
    *,
    base: str | None = None,
    lane: Lane | None = None,
    reasons: tuple[str, ...] = (),
    problems: tuple[str, ...] = (),
    pairs: Sequence[LoraPair] = (),
) -> Inspection:
    declared = raw.config.get("r") if raw is not None else None
    rank = max((pair.rank for pair in pairs), default=declared if type(declared) is int else None)
    return Inspection(
        format=raw.format if raw is not None else None,
        method=method_name(method, raw) if method is not None and raw is not None else None,
        rank=rank,
        base=base,
        lane=lane,
        reasons=reasons,
        problems=problems,
        targets=leaf_names(pair.module.name for pair in pairs),
        base_by_trainer=raw.provenance.base_by_trainer if raw is not None else None,
        trainer=raw.provenance.trainer if raw is not None else None,
    )


def _plan(method: Method, evidence: str, raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    refusal = refusal_of(method, evidence, raw)
    if refusal is not None:
        raise refusal
    assert method.to_lora is not None, "a row of METHODS has either a refusal or a plan"
    if raw.for_base is not None:
        try:
            raw = raw.for_base(base)
        except ArtifactError as fault:
            # Of this base only: another may fit.
            return LoraPlan(pairs=(), scale="", problems=(fault,), notes=())
    return method.to_lora(raw, base)


def _raise_first(problems: Sequence[ArtifactError]) -> None:
    if not problems:
        return
    first, others = problems[0], len(problems) - 1
    if others == 0:
        raise first
    faults = "1 other fault" if others == 1 else f"{others} other faults"
    raise type(first)(f"{first.message}; 'adapterctl inspect' lists {faults}")


def _prove(
    plan: LoraPlan, base: BaseDescriptor, advance: Callable[[int], None]
) -> list[ProvedPair]:
    """Read every value once; raises the first thing that is wrong.

    Up to HOLD_BYTES of what was read stay in memory for writing; the rest is read again then.
    """
    for compare in plan.copies:
        compare()
    proved: list[ProvedPair] = []
    held = 0
    for pair in plan.pairs:
        proof = prove(pair, base.dtype)
        held += proof.size_bytes
        proved.append(keep(pair, proof, hold=held <= HOLD_BYTES))
        advance(pair.size_bytes)
    if not any(item.effective for item in proved):
        raise DamagedArtifact(_no_effect(plan))
    return proved


def _no_effect(plan: LoraPlan) -> str:
    return (
        f"every lora_B (or lora_A) is zero, '{plan.pairs[0].b_name}' for one: the adapter was "
        "saved before training, or its updates are too small for the base's dtype, so it would "
        "answer exactly as the base"
    )


def _value_faults(plan: LoraPlan, base: BaseDescriptor) -> tuple[ArtifactError, ...]:
    """What reading the values shows, each kind once."""
    findings = Findings()
    for compare in plan.copies:
        try:
            compare()
        except ArtifactError as fault:
            findings.add("copy", fault)
    effective = False
    for pair in plan.pairs:
        try:
            effective = prove(pair, base.dtype).effective or effective
        except ArtifactError as fault:
            effective = True
            findings.add("values", fault)
    if not effective:
        findings.add("no effect", DamagedArtifact(_no_effect(plan)))
    return findings.errors()


def _idle_note(proved: Sequence[ProvedPair]) -> tuple[str, ...]:
    idle = [item.pair.module.name for item in proved if not item.effective]
    if not idle:
        return ()
    return (f"{len(idle)} of {len(proved)} pairs have no effect (zero), '{idle[0]}' for one",)


def _advance(total: int, progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done = min(done + count, total)
        if progress is not None:
            progress(done, total)

    return advance
