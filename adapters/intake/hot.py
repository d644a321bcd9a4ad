"""The hot lane: a plan's pairs proved by reading them, and why the adapter is hot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapters.errors import ArtifactError, DamagedArtifact
from adapters.intake.canonical import ProvedPair, keep, prove
from adapters.intake.findings import Findings
from adapters.intake.lora import LoraPlan
from adapters.models import BaseDescriptor

# A 100 MB adapter stays far below 1 GB of memory; a larger one costs a second read instead.
HOLD_BYTES = 256 << 20
# Up to here no engine notices; above, the rank decides what every slot costs.
USUAL_RANK = 64


def prove_pairs(
    plan: LoraPlan, base: BaseDescriptor, advance: Callable[[int], None]
) -> list[ProvedPair]:
    """Read every value once; raises the first thing that is wrong.

    Up to HOLD_BYTES of what was read stay in memory for writing; the rest is read again then.
    """
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


def pair_faults(plan: LoraPlan, base: BaseDescriptor) -> tuple[ArtifactError, ...]:
    """What reading the values shows, each kind once."""
    findings = Findings()
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


def hot_reasons(plan: LoraPlan, base: BaseDescriptor) -> tuple[str, ...]:
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


def idle_note(proved: Sequence[ProvedPair]) -> tuple[str, ...]:
    """How many pairs do nothing, if any."""
    idle = [item.pair.module.name for item in proved if not item.effective]
    if not idle:
        return ()
    return (f"{len(idle)} of {len(proved)} pairs have no effect (zero), '{idle[0]}' for one",)


def _no_effect(plan: LoraPlan) -> str:
    return (
        f"every lora_B (or lora_A) is zero, '{plan.pairs[0].b_name}' for one: the adapter was "
        "saved before training, or its updates are too small for the base's dtype, so it would "
        "answer exactly as the base"
    )
