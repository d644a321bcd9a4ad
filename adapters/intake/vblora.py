"""VB-LoRA as plain LoRA: every piece of A and B is a mixture of vectors of one shared bank.

A piece's logits choose its `topk` vectors and (softmax over those alone) their weights; the pieces
side by side are A [r, in] and B [out, r], with no scale (peft/tuners/vblora/layer.py). With
`save_only_topk_weights` the file has the chosen places and all weights but the last, which is what
is left of 1 (peft/tuners/vblora/model.py, _remap_adapter_state_dict_for_load).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan, load_finite
from adapters.intake.mapping import strip_prefix
from adapters.intake.peft_config import flag, tuner_settings, whole_number
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, check_tensor, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_PARTS = ("vblora_logits_A", "vblora_logits_B")
_CHOSEN = tuple(f"{part}_topk_{what}" for part in _PARTS for what in ("weights", "indices"))
# How far below 0 rounding (to bf16 at worst) leaves the last weight.
_ROUNDING = 0.02
_BANK = "vblora_vector_bank"


def plan_vblora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
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
    # The config's word is what PEFT goes by when it loads.
    chosen = flag(raw.config, "save_only_topk_weights")
    sizes = _Sizes(settings.rank, count, length, topk, chosen)
    tuner = Tuner(
        title="VB-LoRA",
        parts=(*_PARTS, *_CHOSEN),
        settings=settings,
        scale="1",
        rewrite=partial(_rewrite, sizes, bank),
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


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the config says; `chosen`: the file has the chosen places and weights, no logits."""

    rank: int
    vectors: int
    length: int
    topk: int
    chosen: bool


def _rewrite(sizes: _Sizes, bank: Callable[[], torch.Tensor] | None, spec: ModuleSpec) -> Rewrite:
    length = sizes.length
    if spec.in_features % length or spec.out_features % length:
        raise InvalidConfig(
            f"adapter_config.json: vector_length is {length}, which does not divide the "
            f"{spec.in_features} inputs and {spec.out_features} outputs of '{spec.name}'"
        )
    pieces = {
        "vblora_logits_A": (sizes.rank, spec.in_features // length),
        "vblora_logits_B": (spec.out_features // length, sizes.rank),
    }
    if not sizes.chosen:
        mix = partial(_by_logits, sizes.topk, bank)
        return Rewrite(
            rank=sizes.rank,
            shapes={part: (*shape, sizes.vectors) for part, shape in pieces.items()},
            a=Factor(_PARTS[:1], partial(_a, mix)),
            b=Factor(_PARTS[1:], partial(_b, mix)),
        )
    shapes = {}
    for part, shape in pieces.items():
        shapes[f"{part}_topk_weights"] = (*shape, sizes.topk - 1)
        shapes[f"{part}_topk_indices"] = (*shape, sizes.topk)
    mix = partial(_by_places, sizes, bank, spec)
    return Rewrite(
        rank=sizes.rank,
        shapes=shapes,
        a=Factor(_CHOSEN[:2], partial(_a, mix)),
        b=Factor(_CHOSEN[2:], partial(_b, mix)),
        whole=frozenset(_CHOSEN[1::2]),
    )


def _by_logits(
    topk: int, bank: Callable[[], torch.Tensor] | None, logits: torch.Tensor
) -> torch.Tensor:
    assert bank is not None, "a plan with problems is not read"
    largest, chosen = logits.topk(topk, dim=-1)
    return _mixed(largest.softmax(-1), chosen, bank)


def _by_places(
    sizes: _Sizes,
    bank: Callable[[], torch.Tensor] | None,
    spec: ModuleSpec,
    weights: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    assert bank is not None, "a plan with problems is not read"
    last = 1 - weights.sum(-1, keepdim=True)
    if bool((weights < 0).any()) or bool((last < -_ROUNDING).any()):
        raise DamagedArtifact(
            f"the topk_weights of '{spec.name}' are negative or add up to more than 1; they are "
            "parts of a whole"
        )
    if not bool(((places >= 0) & (places < sizes.vectors)).all()):
        raise DamagedArtifact(
            f"the topk_indices of '{spec.name}' go beyond the {sizes.vectors} vectors in the bank"
        )
    ordered = places.sort(-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise DamagedArtifact(
            f"the topk_indices of '{spec.name}' name a vector twice; they are {sizes.topk} "
            "different ones"
        )
    return _mixed(tensors.stacked([weights, last.clamp(min=0)], -1), places.long(), bank)


def _mixed(
    weights: torch.Tensor, chosen: torch.Tensor, bank: Callable[[], torch.Tensor]
) -> torch.Tensor:
    return (weights[..., None] * tensors.wide(bank())[chosen]).sum(-2)


def _a(mix: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    return mix(*parts).flatten(1)


def _b(mix: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    # [pieces of out, rank, length]
    return mix(*parts).transpose(1, 2).flatten(0, 1)
