"""WaveFT: ΔW = scaling · idwt2(F) (or F itself), F zero but at places drawn from a seed
(peft/tuners/waveft/layer.py; the places are not saved).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.fourierft import check_count
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import (
    LoraSettings,
    finite_number,
    flag,
    seed,
    target_settings,
    whole_number,
)
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import tuned_modules
from adapters.intake.rules import LINEAR_OR_CONV1D, Change, Rule, RuleTuner, per_module, plan_rules
from adapters.intake.sizes import module_sizes
from adapters.intake.spectra import drawn_places, from_wavelets, placed
from adapters.intake.wavelets import FILTERS, scaling_filter, wavelet_filter
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "waveft_spectrum"


@dataclass(frozen=True, slots=True)
class _WaveFt:
    """The checked config; `family` None: no transform."""

    scaling: float
    seed: int
    family: str | None

    def config(self) -> dict[str, Any]:
        kept = {"scaling": self.scaling, "random_loc_seed": self.seed}
        wavelet = {} if self.family is None else {"wavelet_family": self.family}
        return {**kept, **wavelet, "use_idwt": self.family is not None}


def plan_waveft(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    settings = target_settings(raw.config)
    wave = _parsed(raw.config)
    counts = _counts(raw, settings, base)

    def config(modules: tuple[ModuleSpec, ...]) -> dict[str, Any]:
        count, others = per_module(counts, modules)
        patterns = {re.escape(name): own for name, own in others.items()}
        return {"n_frequency": count, "n_frequency_pattern": patterns, **wave.config()}

    tuner = RuleTuner(
        title="WaveFT",
        parts=(_PART,),
        settings=settings,
        rule=partial(_rule, counts, wave),
        config=config,
        kinds=LINEAR_OR_CONV1D,
        scale=f"scaling = {wave.scaling:g}",
    )
    return plan_rules(raw, base, tuner)


def _rule(counts: dict[str, int], wave: _WaveFt, spec: ModuleSpec) -> Rule:
    check_count(counts[spec.name], spec)
    return Rule({_PART: (counts[spec.name],)}, {"weight": Change((_PART,), partial(_added, wave))})


def _added(wave: _WaveFt, old: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    rows, columns = old.shape
    places = drawn_places(rows, columns, spectrum.numel(), wave.seed)
    if wave.family is None:
        return old + placed(spectrum, places, (rows, columns)) * wave.scaling
    low = scaling_filter(wave.family)
    # What the transform takes off both sides together, and even.
    longer = len(low) - 2
    height, width = rows + longer + rows % 2, columns + longer + columns % 2
    inner = (places // columns + (height - rows) // 2) * width
    inner = inner + places % columns + (width - columns) // 2
    delta = from_wavelets(placed(spectrum, inner, (height, width)), low, wavelet_filter(low))
    return old + delta[:rows, :columns] * wave.scaling


def _parsed(config: Mapping[str, Any]) -> _WaveFt:
    family = config.get("wavelet_family", "db1")
    if not isinstance(family, str) or family not in FILTERS:
        raise InvalidConfig(
            f"adapter_config.json: wavelet_family is {reprlib.repr(family)}; PEFT can train with "
            f"{', '.join(FILTERS)}"
        )
    transformed = config.get("use_idwt") is None or flag(config, "use_idwt")
    return _WaveFt(
        scaling=finite_number(config, "scaling", 25.0),
        seed=seed(config, "random_loc_seed", 777),
        family=family if transformed else None,
    )


def _counts(raw: RawAdapter, settings: LoraSettings, base: BaseDescriptor) -> dict[str, int]:
    """How many values each module has: by patterns, or in proportion to the modules' sizes
    (peft/tuners/waveft/model.py, _calculate_proportional_parameters)."""
    counts = module_sizes(raw.config, "n_frequency", 2592, base, anywhere=True)
    if not flag(raw.config, "proportional_parameters"):
        return counts
    average = whole_number(raw.config, "n_frequency", 2592, 1)
    targeted = settings.targeted(base.modules) or frozenset(tuned_modules(raw, (_PART,)))
    specs = [m for m in base.modules if m.name in targeted and m.kind in LINEAR_OR_CONV1D]
    sizes = {spec.name: spec.in_features * spec.out_features for spec in specs}
    total, budget = sum(sizes.values()), average * len(sizes)
    return counts | {name: max(1, round(size / total * budget)) for name, size in sizes.items()}
