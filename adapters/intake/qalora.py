"""QA-LoRA as plain LoRA: A sees sums over groups of inputs, so its columns are repeated.

PEFT's GPTQ layers average each group of `qalora_group_size` inputs and multiply by the number of
groups g (peft/tuners/lora/variants.py, QALoraLinearVariant): A'[:, j] = A[:, j // size] · g / size.
Its other layers ignore the flag and have an ordinary A, as wide as the module's inputs; so A's own
width decides, module by module.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapters.errors import InvalidConfig
from adapters.intake.lora import LoraPlan
from adapters.intake.mapping import parse_lora_key
from adapters.intake.peft_config import describe_scale, parse_settings, whole_number
from adapters.intake.raw import RawAdapter
from adapters.intake.rewriting import Factor, Rewrite, Tuner, plan_rewriting, tuned_modules
from adapters.models import BaseDescriptor, ModuleSpec

if TYPE_CHECKING:
    import torch

_PARTS = ("lora_A", "lora_B")
_KEY = "qalora_group_size"


def plan_qalora(raw: RawAdapter, base: BaseDescriptor) -> LoraPlan:
    """See `plan_rewriting`."""
    settings = parse_settings(raw.config)
    scales = settings.scales([spec.name for spec in base.modules])
    # The default is LoraConfig's.
    size = whole_number(raw.config, _KEY, 16, 1)
    if size == 1:
        raise InvalidConfig(
            f"adapter_config.json: {_KEY} is 1, by which it cannot be told whether lora_A belongs "
            "to a GPTQ layer (multiplied by the number of inputs) or to an ordinary one"
        )
    widths = _widths(raw)

    def rewrite(spec: ModuleSpec) -> Rewrite:
        rank, scale = scales[spec.name].rank, scales[spec.name].scale
        # Not even as wide as the inputs: then the message is about the pooled width.
        pooled = widths.get(spec.name) != spec.in_features
        if pooled and spec.in_features % size:
            raise InvalidConfig(
                f"adapter_config.json: {_KEY} is {size}, which does not divide the "
                f"{spec.in_features} inputs of '{spec.name}'"
            )
        groups = spec.in_features // size
        return Rewrite(
            rank=rank,
            shapes={
                "lora_A": (rank, groups if pooled else spec.in_features),
                "lora_B": (spec.out_features, rank),
            },
            a=Factor(("lora_A",), partial(_repeated, size, groups / size) if pooled else _same),
            b=Factor(("lora_B",), partial(_scaled, scale)),
        )

    tuner = Tuner(
        title="QA-LoRA",
        parts=_PARTS,
        settings=settings,
        scale=describe_scale(settings.scales(tuned_modules(raw, _PARTS)), rslora=settings.rslora),
        rewrite=rewrite,
    )
    return plan_rewriting(raw, base, tuner)


def _widths(raw: RawAdapter) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, tensor in raw.tensors.items():
        key = parse_lora_key(name)
        if key is not None and key.side == "A" and len(tensor.shape) == 2:
            found[key.module] = tensor.shape[1]
    return found


def _repeated(size: int, weight: float, a: torch.Tensor) -> torch.Tensor:
    return a.repeat_interleave(size, dim=1) * weight


def _same(a: torch.Tensor) -> torch.Tensor:
    return a


def _scaled(scale: float, b: torch.Tensor) -> torch.Tensor:
    return b * scale
