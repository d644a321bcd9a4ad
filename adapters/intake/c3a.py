"""C3A: a matrix of circulant blocks is added: ΔW[i, j] = C(w_ij) / inputs, with
C(w)[k, l] = w[(l − k) mod b] (peft/tuners/c3a/layer.py computes it by FFT, in fp32).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from adapters.errors import InvalidConfig
from adapters.intake.merging import MergePlan
from adapters.intake.peft_config import target_settings
from adapters.intake.raw import RawAdapter
from adapters.intake.rules import Change, Rule, RuleTuner, per_module, plan_rules
from adapters.intake.sizes import module_sizes
from adapters.intake.spectra import circulant
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PART = "c3a_kernel"


def plan_c3a(raw: RawAdapter, base: BaseDescriptor) -> MergePlan:
    """See `plan_rules`."""
    sizes = module_sizes(raw.config, "block_size", 256, base)
    tuner = RuleTuner(
        title="C3A",
        parts=(_PART,),
        settings=target_settings(raw.config),
        rule=partial(_rule, sizes),
        config=partial(_config, sizes),
        scale="1/inputs",
    )
    return plan_rules(raw, base, tuner)


def _config(sizes: dict[str, int], modules: tuple[ModuleSpec, ...]) -> dict[str, Any]:
    size, others = per_module(sizes, modules)
    return {"block_size": size, "block_size_pattern": others}


def _rule(sizes: dict[str, int], spec: ModuleSpec) -> Rule:
    size, inputs, outputs = sizes[spec.name], spec.in_features, spec.out_features
    if inputs % size or outputs % size:
        raise InvalidConfig(
            f"adapter_config.json: block_size is {size}, which does not divide the {inputs} "
            f"inputs and {outputs} outputs of '{spec.name}'"
        )
    shape = (outputs // size, inputs // size, size)
    return Rule({_PART: shape}, {"weight": Change((_PART,), _added)})


def _added(old: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    return old + circulant(kernel) / old.shape[1]
