"""PEFT's tuners that only a merge can serve: one row each, in METHODS by their `peft_type`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from adapters.intake.beft import plan_beft
from adapters.intake.boft import plan_boft
from adapters.intake.c3a import plan_c3a
from adapters.intake.fourierft import plan_fourierft
from adapters.intake.frod import plan_frod
from adapters.intake.glora import plan_glora
from adapters.intake.hira import plan_hira
from adapters.intake.ia3 import plan_ia3
from adapters.intake.ln_tuning import plan_ln_tuning
from adapters.intake.merging import MergePlan
from adapters.intake.oft import plan_oft
from adapters.intake.osf import plan_osf
from adapters.intake.randlora import plan_randlora
from adapters.intake.raw import RawAdapter
from adapters.intake.road import plan_road
from adapters.intake.shira import plan_shira
from adapters.intake.supertuning import plan_supertuning
from adapters.intake.waveft import plan_waveft
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
    MergeOnly(
        "fourierft",
        "FourierFT",
        "FOURIERFT",
        "it changes few frequencies and by them the whole weight, with full rank",
        plan_fourierft,
        "linear layers and GPT-2's Conv1D; the frequencies are drawn again from the seed",
    ),
    MergeOnly(
        "c3a",
        "C3A",
        "C3A",
        "it adds circulant blocks, a change of full rank",
        plan_c3a,
        "linear layers",
    ),
    MergeOnly(
        "waveft",
        "WaveFT",
        "WAVEFT",
        "it changes few wavelet coefficients and by them the whole weight, with full rank",
        plan_waveft,
        "linear layers and GPT-2's Conv1D; the coefficients are drawn again from the seed",
    ),
    MergeOnly(
        "randlora",
        "RandLoRA",
        "RANDLORA",
        "it combines random bases to a change of full rank",
        plan_randlora,
        "linear layers and GPT-2's Conv1D; with save_projection",
    ),
    MergeOnly(
        "road",
        "RoAd",
        "ROAD",
        "it rotates the outputs of the base's layers, a change of full rank",
        plan_road,
        "linear layers, their biases too",
    ),
    MergeOnly(
        "shira",
        "SHiRA",
        "SHIRA",
        "it changes single values of the base's weights, with full rank",
        plan_shira,
        "linear layers",
    ),
    MergeOnly(
        "beft",
        "BEFT",
        "BEFT",
        "it adds to biases of the base, which a plain LoRA has no place for",
        plan_beft,
        "layers that have a bias in the base",
    ),
    MergeOnly(
        "glora",
        "GLoRA",
        "GLORA",
        "it multiplies the base's weights and changes its biases, with full rank",
        plan_glora,
        "linear layers, their biases too",
    ),
    MergeOnly(
        "frod",
        "FRoD",
        "FROD",
        "it recombines the base's weights, a change of full rank",
        plan_frod,
        "linear layers and GPT-2's Conv1D; with save_projection",
    ),
    MergeOnly(
        "osf",
        "OSF",
        "OSF",
        "it replaces all but the largest singular directions of the base's weights",
        plan_osf,
        "linear layers",
    ),
    MergeOnly(
        "supertuning",
        "SuperTuning",
        "SUPERTUNING",
        "it changes single values of the base's weights, with full rank",
        plan_supertuning,
        "linear layers; with save_precomputed_indices",
    ),
)
