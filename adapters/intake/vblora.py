"""VB-LoRA as plain LoRA: every piece of A and B is a mixture of vectors of one shared bank.

A piece's logits choose its `topk` vectors and (softmax over those alone) their weights; the pieces
side by side are A [r, in] and B [out, r], with no scale (peft/tuners/vblora/layer.py).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan, load_finite
from adapters.intake.mapping import strip_prefix
from adapters.intake.peft_config import tuner_settings, whole_number
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, check_tensor, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_PARTS = ("vblora_logits_A", "vblora_logits_B")
_BANK = "vblora_vector_bank"


def plan_vblora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`. Files with the chosen vectors only have a row of their own."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    count = whole_number(raw.config, "num_vectors", 256, 1)
    length = whole_number(raw.config, "vector_length", 256, 1)
    topk = whole_number(raw.config, "topk", 2, 1)
    if topk > count:
        raise InvalidConfig(
            f"adapter_config.json: topk is {topk}, more than the {count} vectors there are"
        )
    banks = [tensor for name, tensor in raw.tensors.items() if _is_bank(name)]
    own = {name: tensor for name, tensor in raw.tensors.items() if not _is_bank(name)}
    fault = _bank_fault(banks, (count, length))
    bank = cache(partial(load_finite, banks[0])) if fault is None else None
    tuner = Tuner(
        title="VB-LoRA",
        parts=_PARTS,
        settings=settings,
        scale="1",
        rewrite=partial(_rewrite, settings.rank, count, length, topk, bank),
    )
    plan = plan_rewriting(replace(raw, tensors=own), base, tuner)
    if fault is not None:
        return replace(plan, problems=(*plan.problems, fault))
    uses = {**plan.uses, f"base_model.{_BANK}": banks[0]}
    return replace(plan, uses=uses if plan.uses else {})


def _is_bank(name: str) -> bool:
    return strip_prefix(name).removeprefix("base_model.").partition(".")[0] == _BANK


def _bank_fault(banks: list[LazyTensor], shape: tuple[int, int]) -> ArtifactError | None:
    if len(banks) != 1:
        return DamagedArtifact(
            f"the file has {len(banks)} tensors {_BANK}; it is the one that all modules share"
        )
    return check_tensor(banks[0], shape)


def _rewrite(
    rank: int,
    count: int,
    length: int,
    topk: int,
    bank: Callable[[], torch.Tensor] | None,
    spec: ModuleSpec,
) -> Rewrite:
    if spec.in_features % length or spec.out_features % length:
        raise InvalidConfig(
            f"adapter_config.json: vector_length is {length}, which does not divide the "
            f"{spec.in_features} inputs and {spec.out_features} outputs of '{spec.name}'"
        )
    return Rewrite(
        rank=rank,
        shapes={
            "vblora_logits_A": (rank, spec.in_features // length, count),
            "vblora_logits_B": (spec.out_features // length, rank, count),
        },
        a=Factor(("vblora_logits_A",), partial(_a, topk, bank)),
        b=Factor(("vblora_logits_B",), partial(_b, topk, bank)),
    )


def _mixed(
    topk: int, bank: Callable[[], torch.Tensor] | None, logits: torch.Tensor
) -> torch.Tensor:
    assert bank is not None, "a plan with problems is not read"
    largest, chosen = logits.topk(topk, dim=-1)
    vectors = tensors.wide(bank())[chosen]
    return (largest.softmax(-1)[..., None] * vectors).sum(-2)


def _a(topk: int, bank: Callable[[], torch.Tensor] | None, logits: torch.Tensor) -> torch.Tensor:
    return _mixed(topk, bank, logits).reshape(logits.shape[0], -1)


def _b(topk: int, bank: Callable[[], torch.Tensor] | None, logits: torch.Tensor) -> torch.Tensor:
    return _mixed(topk, bank, logits).transpose(1, 2).reshape(-1, logits.shape[1])
