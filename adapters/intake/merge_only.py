"""PEFT's tuners that only a merge can serve: one row each, in METHODS by their `peft_type`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters.intake.boft import plan_boft
from adapters.intake.hira import plan_hira
from adapters.intake.ia3 import plan_ia3
from adapters.intake.ln_tuning import plan_ln_tuning
from adapters.intake.merging import MergePlan
from adapters.intake.oft import plan_oft
from adapters.intake.raw import RawAdapter
from adapters.models import BaseDescriptor


@dataclass(frozen=True, slots=True)
class MergeOnly:
    """`why` no plain LoRA expresses it; `limits` as in `Method`."""

    name: str
    title: str
    peft_type: str
    why: str
    to_merge: Callable[[RawAdapter, BaseDescriptor], MergePlan]
    limits: str = ""


MERGE_ONLY: tuple[MergeOnly, ...] = (
    MergeOnly(
        "ia3",
        "IA³",
        "IA3",
        "it multiplies rows and columns of the base's weights, a change of full rank",
        plan_ia3,
        "linear layers and GPT-2's Conv1D, their biases too",
    ),
    MergeOnly(
        "oft",
        "OFT",
        "OFT",
        "it rotates the inputs of the base's weights, a change of full rank",
        plan_oft,
        "linear layers; the Cayley-Neumann series of PEFT 0.18 and later",
    ),
    MergeOnly(
        "boft",
        "BOFT",
        "BOFT",
        "it rotates the inputs of the base's weights, a change of full rank",
        plan_boft,
        "linear layers",
    ),
    MergeOnly(
        "ln-tuning",
        "LayerNorm tuning",
        "LN_TUNING",
        "it replaces the base's norms, which a plain LoRA has no place for",
        plan_ln_tuning,
        "norms only",
    ),
    MergeOnly(
        "hira",
        "HiRA",
        "HIRA",
        "it multiplies the base's weights element by element, a change of full rank",
        plan_hira,
        "linear layers and GPT-2's Conv1D",
    ),
)
