"""PiSSA and OLoRA as plain LoRA on the original base, of rank 2r.

Both start from factors A0, B0 of the base's own weight W and train on the rest, W − s·B0·A0. PEFT
computes A0 and B0 anew from W when it loads such an adapter, so on the original base the change is
s·B·A − s·B0·A0: the pair [A; A0], [s·B, −s·B0]. Both products are determined by W alone (the
largest r singular values, the first r columns of the QR), whatever the signs a library picks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.bases.weights import BaseWeights
from adapters.errors import ArtifactError, NotHotServable
from adapters.intake import tensors
from adapters.intake.findings import Findings
from adapters.intake.lora import LoraPair, LoraPlan, plan_lora
from adapters.intake.peft_config import MAX_RANK, parse_settings
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

_TITLES = {"pissa": "PiSSA", "olora": "OLoRA"}
_FLOATS = ("F16", "BF16", "F32")
_SAVE = (
    "save the adapter with PEFT's path_initial_model_for_weight_conversion, or merge it into the "
    "base and serve the result"
)


def exact_init(raw: RawAdapter) -> str | None:
    """`pissa` or `olora` as PEFT reads them; None for any other initialisation."""
    init = raw.config.get("init_lora_weights")
    if init == "pissa":
        return "pissa"
    return "olora" if isinstance(init, str) and init.lower() == "olora" else None


def plan_residual(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """`plan_lora`, with each pair extended by the part that was taken out of the base."""
    plan = plan_lora(raw, base)
    init = exact_init(raw)
    assert init is not None, "METHODS sends nothing else here"
    refusal = _refusal(_TITLES[init], plan, base)
    if plan.problems or refusal is not None:
        problems = plan.problems if refusal is None else (*plan.problems, NotHotServable(refusal))
        return replace(plan, problems=problems, uses={})
    assert base.directory is not None, "refused above"
    scales = parse_settings(raw.config).scales([pair.module.name for pair in plan.pairs])
    # PiSSA's factors are divided by the scale, OLoRA's are not.
    strength = {name: 1.0 if init == "pissa" else item.scale for name, item in scales.items()}
    part = _Part(BaseWeights(base, Path(base.directory)), init, strength)
    # The two halves of a pair are asked for one after the other: one module's is kept.
    taken_out = lru_cache(maxsize=1)(part.of)
    return replace(
        plan,
        pairs=tuple(_extended(pair, taken_out) for pair in plan.pairs),
        problems=_too_high(_TITLES[init], plan),
        reason=f"what {_TITLES[init]} took out of the base is computed from the base's weights and "
        "subtracted, which makes it plain LoRA of twice the rank",
    )


def _refusal(title: str, plan: LoraPlan, base: BaseDescriptor) -> str | None:
    if base.directory is None:
        return f"{title} needs the base's own weights, which are not at hand; {_SAVE}"
    for pair in plan.pairs:
        # A tied head is the embedding too, and Conv1D lies the other way round.
        if pair.module.kind != "linear" or pair.module.name.rpartition(".")[2] == "lm_head":
            return f"'{pair.a_name}': {title} is undone for inner linear layers only; {_SAVE}"
        least = min(pair.module.in_features, pair.module.out_features)
        if pair.rank > least:
            return f"'{pair.a_name}' has rank {pair.rank}: {title} takes no more than {least} there"
    return None


def _too_high(title: str, plan: LoraPlan) -> tuple[ArtifactError, ...]:
    findings = Findings()
    for pair in plan.pairs:
        if 2 * pair.rank > MAX_RANK:
            findings.add(
                "rank",
                NotHotServable(
                    f"on the original base the {title} of '{pair.module.name}' needs rank "
                    f"{2 * pair.rank}; engines take ranks up to {MAX_RANK}"
                ),
            )
    return findings.errors()


@dataclass(frozen=True)
class _Part:
    """What the initialisation takes out of a module's weight: s·B0 and A0."""

    weights: BaseWeights
    init: str
    strength: Mapping[str, float]

    def of(self, spec: ModuleSpec, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        place = self.weights.place(spec.name)
        if place is None or place[1].dtype not in _FLOATS:
            found = "is not stored by that name" if place is None else f"is {place[1].dtype}"
            raise NotHotServable(
                f"the base's weight of '{spec.name}' {found}, so what {_TITLES[self.init]} took "
                f"out of it is unknown; {_SAVE}"
            )
        # PEFT computes in fp32 whatever the base's dtype (pissa_init, olora_init).
        weight = tensors.read_tensor(place[0], f"{spec.name}.weight", place[1]).float()
        split = tensors.singular if self.init == "pissa" else tensors.triangular
        b, a = split(weight, rank)
        return b * self.strength[spec.name], a


def _extended(
    pair: LoraPair, taken_out: Callable[[ModuleSpec, int], tuple[torch.Tensor, torch.Tensor]]
) -> LoraPair:
    return replace(
        pair,
        rank=2 * pair.rank,
        load_a=partial(_a, pair, taken_out),
        load_b=partial(_b, pair, taken_out),
    )


def _a(
    pair: LoraPair, taken_out: Callable[[ModuleSpec, int], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    return tensors.stacked([pair.load_a().float(), taken_out(pair.module, pair.rank)[1]], 0)


def _b(
    pair: LoraPair, taken_out: Callable[[ModuleSpec, int], tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    return tensors.stacked([pair.load_b().float(), -taken_out(pair.module, pair.rank)[0]], 1)
