"""FourierFT: ΔW = scaling · Re(ifft2(F)), where F is zero but at places drawn from a seed
(peft/tuners/fourierft/layer.py; the places are not saved).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import finite_number, seed, target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import LINEAR_OR_CONV1D, Change, Rule, RuleTuner, per_module, plan_rules
from adapters.intake.sizes import module_sizes
from adapters.intake.spectra import drawn_places, from_frequencies, placed
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "fourierft_spectrum"
_SEED = "random_loc_seed"


def plan_fourierft(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    scaling, drawn = finite_number(raw.config, "scaling", 150.0), seed(raw.config, _SEED, 777)
    counts = module_sizes(raw.config, "n_frequency", 1000, base)

    def config(modules: tuple[ModuleSpec, ...]) -> dict[str, Any]:
        count, others = per_module(counts, modules)
        patterns = {"n_frequency": count, "n_frequency_pattern": others}
        return {**patterns, "scaling": scaling, _SEED: drawn}

    tuner = RuleTuner(
        title="FourierFT",
        parts=(_PART,),
        settings=target_settings(raw.config),
        rule=partial(_rule, counts, scaling, drawn),
        config=config,
        kinds=LINEAR_OR_CONV1D,
        scale=f"scaling = {scaling:g}",
    )
    return plan_rules(raw, base, tuner)


def _rule(counts: dict[str, int], scaling: float, drawn: int, spec: ModuleSpec) -> Rule:
    count = counts[spec.name]
    check_count(count, spec)
    added = Change((_PART,), partial(_added, scaling, drawn))
    return Rule({_PART: (count,)}, {"weight": added})


def check_count(count: int, spec: ModuleSpec) -> None:
    """Are there as many places in the module's weight? Raises InvalidConfig."""
    if count > spec.in_features * spec.out_features:
        raise InvalidConfig(
            f"adapter_config.json: n_frequency is {count}, more than the "
            f"{spec.in_features * spec.out_features} values of '{spec.name}'"
        )


def _added(scaling: float, drawn: int, old: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    rows, columns = old.shape
    places = drawn_places(rows, columns, spectrum.numel(), drawn)
    return old + from_frequencies(placed(spectrum, places, (rows, columns))) * scaling
