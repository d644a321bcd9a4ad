"""KaSA as plain LoRA on the original base, of rank 2r.

PEFT takes the r smallest singular components U·S·V out of the base's own weight, at training and
whenever it loads the adapter, and adds s·B·diag(d)·A (peft/tuners/lora/variants.py,
KasaLinearVariant). On the original base the change is the pair [A; V], [s·B·diag(d), −U·S]; what
is taken out is determined by the weight, whatever signs a library picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig, NotHotServable
from adapters.intake import algebra, tensors
from adapters.intake.lora import LoraPlan
from adapters.intake.own_weights import Weight, own_weights, with_weights
from adapters.intake.peft_config import describe_scale, parse_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import MERGE, Factor, Rewrite, Tuner, plan_rewriting, tuned_modules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("lora_A", "lora_B", "lora_diag")
_Dropped = Callable[[ModuleSpec, int], tuple["torch.Tensor", "torch.Tensor"]]


def plan_kasa(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`; needs the base's weights."""
    if raw.config.get("kasa_config") is None:
        raise InvalidConfig(
            "there are tensors lora_diag, KaSA's, yet adapter_config.json has no kasa_config, by "
            "which PEFT ignores them: config and tensors do not belong together"
        )
    settings = parse_settings(raw.config)
    scales = settings.scales([spec.name for spec in base.modules])
    # The two halves of a pair are asked for one after the other: one module's is kept.
    dropped = lru_cache(maxsize=1)(partial(_taken_out, own_weights(base, "KaSA")))

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank, scale = scales[spec.name].rank, scales[spec.name].scale
        _check(spec, rank)
        return Rewrite(
            rank=2 * rank,
            shapes={
                "lora_A": (rank, spec.in_features),
                "lora_B": (spec.out_features, rank),
                "lora_diag": (rank,),
            },
            a=Factor(("lora_A",), partial(_a, dropped, spec, rank)),
            b=Factor(("lora_B", "lora_diag"), partial(_b, dropped, spec, rank, scale)),
        )

    tuner = Tuner(
        title="KaSA",
        parts=_PARTS,
        settings=settings,
        scale=describe_scale(settings.scales(tuned_modules(raw, _PARTS)), rslora=settings.rslora),
        rewrite=rewrite,
    )
    plan = plan_rewriting(raw, base, tuner)
    reason = (
        "what KaSA took out of the base is computed from the base's weights and subtracted, which "
        "makes it plain LoRA of twice the rank"
    )
    return with_weights(replace(plan, reason=reason), base, "KaSA")


def _check(spec: ModuleSpec, rank: int) -> None:
    if rank >= min(spec.in_features, spec.out_features):
        raise InvalidConfig(
            f"adapter_config.json: r is {rank}; KaSA keeps a part of '{spec.name}', "
            f"[{spec.out_features}, {spec.in_features}], so it must be less than both"
        )
    if spec.name.rpartition(".")[2] == "lm_head":
        # PEFT truncates the weight itself, which a tied head shares with the embedding.
        raise NotHotServable(
            f"'{spec.name}': KaSA is undone for inner linear layers only, as PEFT's change of a "
            f"tied output head reaches the embedding too; {MERGE}"
        )


def _taken_out(weight: Weight, spec: ModuleSpec, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    # PEFT computes in fp32 whatever the base's dtype.
    us, v = algebra.smallest(weight(spec).float(), rank)
    return tensors.wide(us), tensors.wide(v)


def _a(dropped: _Dropped, spec: ModuleSpec, rank: int, a: torch.Tensor) -> torch.Tensor:
    return tensors.stacked([a, dropped(spec, rank)[1]], 0)


def _b(
    dropped: _Dropped,
    spec: ModuleSpec,
    rank: int,
    scale: float,
    b: torch.Tensor,
    diagonal: torch.Tensor,
) -> torch.Tensor:
    return tensors.stacked([b * diagonal * scale, -dropped(spec, rank)[0]], 1)
