"""A plain LoRA out of a full fine-tune: an approximation, made only when it is asked for.

Each changed matrix becomes its truncated singular value decomposition (spectrum.py); what no LoRA
expresses is left out by name and size, or refused where leaving it out would make another model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, NotHotServable
from adapters.intake import spectrum, tensors
from adapters.intake.findings import Findings
from adapters.intake.fine_tune import Counterpart, FineTune, hold_against
from adapters.intake.lora import LoraPair, LoraPlan, load_finite, not_hot
from adapters.intake.peft_config import MAX_RANK
from adapters.intake.raw import RawAdapter
from adapters.intake.scratch import Scratch
from adapters.intake.whole_weights import NO_EFFECT, check_tied
from adapters.models import (
    Approximate,
    Approximation,
    BaseDescriptor,
    LeftOut,
    ModuleApproximation,
    ModuleSpec,
)

if TYPE_CHECKING:
    import torch

# A parameter that no LoRA expresses and that moved by more than this part of its own size is no
# detail: what is left without it is another model.
LEFT_OUT_LIMIT = 0.1
_INSTEAD = "register it without --approximate, for the merged lane"


def extract(
    raw: RawAdapter,
    base: BaseDescriptor,
    rank: Approximate,
    scratch: Path | None,
    progress: Callable[[int, int], None],
) -> LoraPlan:
    """LoRA pairs of `rank`, or with `auto` of each module's own, and what they lose.

    One module at a time is in memory; factors wait in an unnamed file in the directory `scratch`
    (None: the system's for temporary files). `progress` is told bytes done and bytes in all.
    Raises BaseError and StoreError; what is wrong with the artifact is in the plan's problems.
    """
    tune = hold_against(raw, base)
    problems = tune.problems or _refusals(tune)
    if problems:
        return _without_pairs(problems)
    findings = Findings()
    for one, other in tune.equal:
        check_tied(one, other, findings)
    work = _Extraction(base, tune.tied, rank, Scratch(scratch), findings)
    total, done = sum(part.size_bytes for part in tune.parts), 0
    for part in tune.parts:
        work.take(part)
        done += part.size_bytes
        progress(done, total)
    work.refuse_large()
    if not findings and not work.pairs:
        findings.add("no effect", DamagedArtifact(work.no_effect()))
    if findings:
        return _without_pairs(findings.errors())
    return work.plan(tune)


def _without_pairs(problems: Sequence[ArtifactError]) -> LoraPlan:
    return LoraPlan(pairs=(), scale="", problems=tuple(problems), notes=())


def _refusals(tune: FineTune) -> tuple[ArtifactError, ...]:
    """What makes it another model than the base with other weights."""
    if tune.resized is not None:
        before, after = (item.shape[0] for item in (tune.resized.base, tune.resized.tuned))
        text = f"its vocabulary has {after} tokens and the base's {before}, which no LoRA expresses"
        return (NotHotServable(f"{text}; {_INSTEAD}"),)
    # A head that was untied is a change of the head like any other.
    ignored = {*tune.special_tokens, "tie_word_embeddings"}
    other = [key for key in tune.config if key not in ignored]
    if other:
        text = f"its config.json differs from the base's in {', '.join(other)}"
        return (NotHotServable(f"{text}, which an engine has for all adapters alike; {_INSTEAD}"),)
    return ()


@dataclass(slots=True)
class _Extraction:
    """One fine-tune's: what became of the parameters so far."""

    base: BaseDescriptor
    tied: tuple[str, str] | None
    rank: Approximate
    scratch: Scratch
    findings: Findings
    pairs: list[LoraPair] = field(default_factory=list)
    modules: list[ModuleApproximation] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    why_left_out: dict[str, str] = field(default_factory=dict)
    capped: int = 0
    only_rounded: int = 0
    # Sums of squares over all modules.
    energy: float = 0.0
    lost: float = 0.0
    noise: float = 0.0

    def take(self, part: Counterpart) -> None:
        """Read the parameter in both and make a pair of what differs."""
        try:
            tuned = load_finite(part.tuned)
        except ArtifactError as fault:
            self.findings.add("values", fault)
            return
        base = part.base.load()
        if tensors.same_numbers(tuned, base) or self.findings:
            return
        if _only_saved_narrower(tuned, base):
            self.only_rounded += 1
            return
        specs = self._specs(part)
        why = self._inexpressible(part, specs)
        if why is None:
            self._decompose(part, specs, tuned, base)
        else:
            change = tensors.relative_change(tuned, base)
            self.left_out.append(LeftOut(parameter=part.parameter, change=change))
            self.why_left_out[part.parameter] = why

    def _specs(self, part: Counterpart) -> tuple[ModuleSpec, ...]:
        """The module, and the head where the parameter is both ends of the model."""
        if part.module is None:
            return ()
        if self.tied is None or part.parameter != self.tied[0]:
            return (part.module,)
        head = self.tied[1].removesuffix(".weight")
        return (part.module, *(spec for spec in self.base.modules if spec.name == head))

    def _inexpressible(self, part: Counterpart, specs: Sequence[ModuleSpec]) -> str | None:
        if not specs:
            return "no weight of a linear layer or an embedding"
        reasons = (not_hot(spec, self.base) for spec in specs)
        return next((reason for reason in reasons if reason is not None), None)

    def _decompose(
        self,
        part: Counterpart,
        specs: Sequence[ModuleSpec],
        tuned: torch.Tensor,
        base: torch.Tensor,
    ) -> None:
        spec = specs[0]
        if spec.kind != "linear":  # the base keeps [in, out]
            tuned, base = tuned.T, base.T
        change, turned = spectrum.Change.of(tuned, base)
        found = spectrum.spectrum(change)
        rank = self._rank(spec, found)
        lost = found.energy
        if rank:
            made = spectrum.factors(change, found, rank, turned=turned)
            lost = made.lost
            self._pair(part, specs, rank, made)
        self.energy += found.energy
        self.lost += lost
        self.noise += found.noise
        self.modules.append(
            ModuleApproximation(
                module=spec.name,
                rank=rank,
                energy=1 - lost / found.energy,
                error=math.sqrt(lost / found.energy),
                noise=found.noise / found.energy,
            )
        )

    def _rank(self, spec: ModuleSpec, found: spectrum.Spectrum) -> int:
        if self.rank != "auto":
            return min(self.rank, found.numerical_rank)
        cap = rank_cap(spec)
        self.capped += found.rank > cap
        return min(found.rank, cap)

    def _pair(
        self, part: Counterpart, specs: Sequence[ModuleSpec], rank: int, made: spectrum.Factors
    ) -> None:
        a, b = self.scratch.keep(made.a), self.scratch.keep(made.b)
        turned_a, turned_b = a.turned, b.turned
        for number, spec in enumerate(specs):
            # A tied head computes with the embedding turned: its A is the embedding's B.
            first, second = (a.load, b.load) if number == 0 else (turned_b, turned_a)
            self.pairs.append(
                LoraPair(
                    module=spec,
                    rank=rank,
                    a_name=part.tuned.name,
                    b_name=part.tuned.name,
                    load_a=first,
                    load_b=second,
                    size_bytes=a.size_bytes + b.size_bytes,
                )
            )

    def refuse_large(self) -> None:
        """What is left out and is no detail."""
        for item in self.left_out:
            if item.change > LEFT_OUT_LIMIT:
                size = (
                    "from zero" if math.isinf(item.change) else f"by {item.change:.0%} of its size"
                )
                text = f"'{item.parameter}' changed {size} ({self.why_left_out[item.parameter]})"
                self.findings.add("left out", NotHotServable(f"{text}; {_INSTEAD}"))

    def no_effect(self) -> str:
        if not (self.modules or self.left_out or self.only_rounded):
            return NO_EFFECT
        return f"no change of a matrix stands above the rounding of its dtype; {_INSTEAD}"

    def plan(self, tune: FineTune) -> LoraPlan:
        """All of it, and what it is worth."""
        found = Approximation(
            requested=self.rank,
            energy=1 - self.lost / self.energy,
            error=math.sqrt(self.lost / self.energy),
            noise=self.noise / self.energy,
            worst=max(self.modules, key=lambda item: item.error),
            modules=tuple(self.modules),
            left_out=tuple(self.left_out),
        )
        notes: list[str] = []
        idle = sum(item.rank == 0 for item in self.modules) + self.only_rounded
        if idle:
            notes.append(f"{idle} parameters changed by no more than rounding and were left out")
        if tune.special_tokens:
            keys = ", ".join(tune.special_tokens)
            notes.append(f"its config.json names other tokens ({keys}); an engine has the base's")
        if tune.files:
            names = ", ".join(path.name for path in tune.files)
            notes.append(f"an engine has the base's {names}, not its own")
        return LoraPlan(
            pairs=tuple(sorted(self.pairs, key=lambda pair: pair.module.name)),
            scale="1",
            problems=(),
            notes=tuple(notes),
            reason=_reasons(found, self.capped),
            approximation=found,
        )


def _reasons(found: Approximation, capped: int) -> str:
    ranks = [item.rank for item in found.modules if item.rank]
    low, high = min(ranks), max(ranks)
    spread = f"rank {low}" if low == high else f"ranks {low} to {high}"
    parts = [
        f"approximate, as asked for: a plain LoRA of {spread} out of a full fine-tune keeps "
        f"{found.energy:.2%} of the energy of its change in {len(found.modules)} modules, a "
        f"relative error of {found.error:.2%} (worst: '{found.worst.module}' with "
        f"{found.worst.error:.2%}); rounding explains {found.noise:.2%} of the energy"
    ]
    if capped:
        parts.append(f"in {capped} modules more stands above the rounding than their rank takes")
    if found.left_out:
        most = max(found.left_out, key=lambda item: item.change)
        parts.append(
            f"{len(found.left_out)} changed parameters that no LoRA expresses are left out, the "
            f"most changed '{most.parameter}' by {most.change:.3%} of its size"
        )
    return "; ".join(parts)


def rank_cap(spec: ModuleSpec) -> int:
    """The largest rank `auto` takes: an engine's, and no more than half a dense change's values."""
    dense = spec.in_features * spec.out_features
    return max(1, min(MAX_RANK, dense // (2 * (spec.in_features + spec.out_features))))


def _only_saved_narrower(tuned: torch.Tensor, base: torch.Tensor) -> bool:
    """Is it the base's value, rounded when one of the two was saved in another dtype?"""
    rounded = base.to(tuned.dtype)
    return tensors.same_numbers(tuned, rounded) or tensors.same_numbers(tuned.to(base.dtype), base)
