"""UniLoRA as plain LoRA: every value of every A and B is an entry of one vector, times a scale.

Which entry is in the file (save_indices), or drawn anew as PEFT does on loading: over all targeted
modules, in the model's order, each entry is used as often as any other, shuffled by proj_seed; the
scale is 1/sqrt of how often (peft/tuners/unilora/model.py, _assign_unilora_indices_and_scales).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import algebra, tensors
from adapters.intake.lora import LoraPlan, load_finite
from adapters.intake.mapping import PREFIX, strip_prefix
from adapters.intake.peft_config import LoraSettings, flag, tuner_settings, whole_number
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, check_tensor, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_A = ("unilora_scales_A", "unilora_indices_A")
_B = ("unilora_scales_B", "unilora_indices_B")
_VECTOR = "unilora_theta_d"
_KINDS = frozenset({"linear", "conv1d"})
# A GiB of places: ten times those of a usual adapter of an 8B base.
_MOST_DRAWN = 1 << 27


def plan_unilora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    # The default is UniLoraConfig's.
    length = whole_number(raw.config, "theta_d_length", 256, 1)
    vectors = [tensor for name, tensor in raw.tensors.items() if _is_vector(name)]
    own = {name: tensor for name, tensor in raw.tensors.items() if not _is_vector(name)}
    fault = _fault(vectors, length)
    if not flag(raw.config, "save_indices"):
        if own:
            raise InvalidConfig(
                f"'{next(iter(own.values())).name}' is in the file, yet save_indices is false, by "
                "which PEFT ignores it and draws others: set it to true if they are right"
            )
        own = _drawn(raw, settings, base, length)
    vector = cache(partial(load_finite, vectors[0])) if fault is None else None
    tuner = Tuner(
        title="UniLoRA",
        parts=(*_A, *_B),
        settings=settings,
        scale="per value (how often an entry is used)",
        rewrite=partial(_rewrite, settings.rank, length, vector),
        kinds=_KINDS,
    )
    plan = plan_rewriting(replace(raw, tensors=own), base, tuner)
    return plan if fault is None else replace(plan, problems=(*plan.problems, fault))


def _rewrite(
    rank: int, length: int, vector: Callable[[], torch.Tensor] | None, spec: ModuleSpec
) -> Rewrite:
    a, b = (rank, spec.in_features), (spec.out_features, rank)
    make = partial(_made, spec, length, vector)
    return Rewrite(
        rank=rank,
        shapes={**dict.fromkeys(_A, a), **dict.fromkeys(_B, b)},
        a=Factor(_A, make),
        b=Factor(_B, make),
        whole=frozenset({_A[1], _B[1]}),
    )


def _made(
    spec: ModuleSpec,
    length: int,
    vector: Callable[[], torch.Tensor] | None,
    scales: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    assert vector is not None, "a plan with problems is not read"
    if not bool(((places >= 0) & (places < length)).all()):
        raise DamagedArtifact(
            f"the unilora_indices of '{spec.name}' go beyond the {length} entries of {_VECTOR}"
        )
    return tensors.wide(vector())[places.long()] * scales


def _is_vector(name: str) -> bool:
    return strip_prefix(name).removeprefix("base_model.").partition(".")[0] == _VECTOR


def _fault(vectors: list[LazyTensor], length: int) -> ArtifactError | None:
    if len(vectors) != 1:
        return DamagedArtifact(
            f"the file has {len(vectors)} tensors {_VECTOR}; it is the one that all modules share"
        )
    return check_tensor(vectors[0], (length,))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Places for all modules at once, and each entry's scale; drawn when first asked for."""

    total: int
    length: int
    seed: int
    dtype: str

    def places(self) -> torch.Tensor:
        return algebra.balanced(self.total, self.length, self.seed)

    def scales(self, places: torch.Tensor) -> torch.Tensor:
        counts = places.bincount(minlength=self.length).float()
        # PEFT keeps the scales in the base's dtype.
        return tensors.rounded(counts.rsqrt(), self.dtype).float()


def _drawn(
    raw: RawAdapter, settings: LoraSettings, base: BaseDescriptor, length: int
) -> dict[str, LazyTensor]:
    """The tensors as if they had been saved."""
    targeted = settings.targeted(base.modules)
    if targeted is None:
        raise InvalidConfig(
            "adapter_config.json names no target_modules, without which UniLoRA's indices cannot "
            "be drawn again"
        )
    specs = [spec for spec in base.modules if spec.name in targeted and spec.kind in _KINDS]
    rank = settings.rank
    total = sum(rank * (spec.in_features + spec.out_features) for spec in specs)
    if total > _MOST_DRAWN:
        raise InvalidConfig(
            f"adapter_config.json: r is {rank}, by which {total} indices would have to be drawn; "
            "save the adapter with save_indices, or with a lower rank"
        )
    seed = whole_number(raw.config, "proj_seed", 42, 0)
    draw = _Draw(total, length, seed, base.dtype)
    places = cache(draw.places)
    scales = cache(lambda: draw.scales(places()))
    found: dict[str, LazyTensor] = {}
    at = 0
    for spec in specs:
        shapes = ((_A, (rank, spec.in_features)), (_B, (spec.out_features, rank)))
        for (scale, index), shape in shapes:
            cut = partial(_cut, places, at, shape)
            for part, dtype, load in (
                (index, "I64", cut),
                (scale, "F32", partial(_scaled, scales, cut)),
            ):
                name = f"{PREFIX}{spec.name}.{part}"
                found[name] = LazyTensor(name, dtype, shape, load)
            at += shape[0] * shape[1]
    return found


def _cut(places: Callable[[], torch.Tensor], at: int, shape: tuple[int, int]) -> torch.Tensor:
    return places()[at : at + shape[0] * shape[1]].reshape(shape)


def _scaled(scales: Callable[[], torch.Tensor], places: Callable[[], torch.Tensor]) -> torch.Tensor:
    return scales()[places()]
