"""VeRA as plain LoRA: ΔW = diag(λ_b) · B · diag(λ_d) · A, where all modules share one A and one B.

A [r, largest in] and B [largest out, r] are in the file, or (save_projection = false) drawn anew
from projection_prng_key as PEFT does on loading; each module takes the part that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from adapters.errors import ArtifactError, DamagedArtifact, InvalidConfig
from adapters.intake import tensors
from adapters.intake.lora import LoraPlan, load_finite
from adapters.intake.mapping import strip_prefix
from adapters.intake.peft_config import LoraSettings, tuner_settings, whole_number
from adapters.intake.raw import LazyTensor, RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, check_tensor, plan_rewriting
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("vera_lambda_b", "vera_lambda_d")
_KINDS = frozenset({"linear", "conv1d"})


@dataclass(frozen=True, slots=True)
class _Projections:
    """The shared A and B; each is read (or drawn) once and kept while the plan lives."""

    a: Callable[[], torch.Tensor]
    b: Callable[[], torch.Tensor]


def plan_vera(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = tuner_settings(raw.config, alpha=None, patterns=False)
    shared = _shared(raw.tensors)
    own = {name: tensor for name, tensor in raw.tensors.items() if tensor not in shared.values()}
    shapes = _shapes(own, settings, base)
    projections, faults = _projections(raw, shared, shapes)
    tuner = Tuner(
        title="VeRA",
        parts=_PARTS,
        settings=settings,
        scale="per row and rank (lambda_b, lambda_d)",
        rewrite=partial(_rewrite, settings.rank, projections),
        kinds=_KINDS,
    )
    plan = plan_rewriting(replace(raw, tensors=own), base, tuner)
    uses = {**plan.uses, **{f"base_model.{name}": shared[name] for name in shared}}
    return replace(plan, problems=plan.problems + faults, uses=uses if plan.uses else {})


def _rewrite(rank: int, shared: _Projections, spec: ModuleSpec) -> Rewrite:
    return Rewrite(
        rank=rank,
        shapes={"vera_lambda_b": (spec.out_features,), "vera_lambda_d": (rank,)},
        a=Factor((), partial(_a, shared, spec.in_features)),
        b=Factor(_PARTS, partial(_b, shared, spec.out_features)),
    )


def _a(shared: _Projections, inputs: int) -> torch.Tensor:
    return tensors.wide(shared.a()[:, :inputs])


def _b(
    shared: _Projections, outputs: int, lambda_b: torch.Tensor, lambda_d: torch.Tensor
) -> torch.Tensor:
    return lambda_b[:, None] * tensors.wide(shared.b()[:outputs]) * lambda_d


def _shared(found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """vera_A and vera_B: `base_model.vera_A`, or with an adapter's name after it."""
    shared: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        stem = strip_prefix(name).removeprefix("base_model.").partition(".")[0]
        if stem in ("vera_A", "vera_B"):
            if stem in shared:
                raise DamagedArtifact(f"'{shared[stem].name}' and '{name}' are both {stem}")
            shared[stem] = tensor
    return shared


def _shapes(
    own: Mapping[str, LazyTensor], settings: LoraSettings, base: BaseDescriptor
) -> dict[str, tuple[int, int]]:
    """What A and B must be: as large as the largest module that is targeted (PEFT, _find_dim)."""
    targeted = settings.targeted(base.modules)
    if targeted is None:
        targeted = frozenset(strip_prefix(name).partition(".vera_lambda_")[0] for name in own)
    specs = [spec for spec in base.modules if spec.name in targeted and spec.kind in _KINDS]
    largest_in = max((spec.in_features for spec in specs), default=0)
    largest_out = max((spec.out_features for spec in specs), default=0)
    return {"vera_A": (settings.rank, largest_in), "vera_B": (largest_out, settings.rank)}


def _projections(
    raw: RawAdapter, shared: Mapping[str, LazyTensor], shapes: Mapping[str, tuple[int, int]]
) -> tuple[_Projections, tuple[ArtifactError, ...]]:
    saved = raw.config.get("save_projection", True)
    if not isinstance(saved, bool):
        raise InvalidConfig("adapter_config.json: save_projection must be true or false")
    if shared and not saved:
        return _Projections(_never, _never), (
            InvalidConfig(
                f"'{next(iter(shared.values())).name}' is in the file, yet save_projection is "
                "false, by which PEFT ignores it and draws another: set it to true if it is right"
            ),
        )
    if not saved:
        # PEFT takes any integer torch's generator takes; its default is 0.
        key = whole_number(raw.config, "projection_prng_key", 0, 0)
        draw = cache(partial(_draw, key, shapes["vera_A"], shapes["vera_B"]))
        return _Projections(lambda: draw()[0], lambda: draw()[1]), ()
    for name, shape in shapes.items():
        if name not in shared:
            fault: ArtifactError | None = DamagedArtifact(
                f"the file has no {name}, the projection that all modules share, although "
                "save_projection is true"
            )
        else:
            fault = check_tensor(shared[name], shape)
        if fault is not None:
            return _Projections(_never, _never), (fault,)
    a, b = shared["vera_A"], shared["vera_B"]
    return _Projections(cache(partial(load_finite, a)), cache(partial(load_finite, b))), ()


def _never() -> torch.Tensor:
    raise AssertionError("a plan with problems is not read")


def _draw(
    key: int, a_shape: tuple[int, int], b_shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A, then B, uniform within ±sqrt(6 / columns): peft/tuners/vera/model.py, _kaiming_init."""
    generator = tensors.generator(key)
    a, b = (
        tensors.uniform(shape, math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1])), generator)
        for shape in (a_shape, b_shape)
    )
    return a, b
