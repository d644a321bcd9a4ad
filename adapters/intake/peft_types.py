"""PEFT's other tuners by `peft_type`: what becomes of each.

A literal table, so that every name gets its own right answer (and grep finds it). The ranks are
those measured for PEFT 0.21.2 by comparing the merged weight with the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What can be done with a method that is no plain LoRA."""

    PLAIN = "its change is a low-rank product, so it is rewritten as plain LoRA"
    MERGE = "its change is no low-rank product, so no plain LoRA expresses it"
    UNSAVED = (
        "its change depends on which signs the trainer's library gave the singular vectors of the "
        "base's weights, which the file does not keep, so nothing but that machine reproduces it"
    )
    NEVER = "it depends on the input or adds virtual tokens, so neither lane can serve it"


@dataclass(frozen=True, slots=True)
class PeftType:
    """`title` as people write it; `fate` what can become of it."""

    title: str
    fate: Fate


PEFT_TYPES: Mapping[str, PeftType] = {
    "ADALORA": PeftType("AdaLoRA", Fate.PLAIN),
    "DELORA": PeftType("DeLoRA", Fate.PLAIN),
    "DEFT": PeftType("DEFT", Fate.PLAIN),
    "GRALORA": PeftType("GraLoRA", Fate.PLAIN),
    "HRA": PeftType("HRA", Fate.PLAIN),
    "LOHA": PeftType("LoHa", Fate.PLAIN),
    "LOKR": PeftType("LoKr", Fate.PLAIN),
    "MISS": PeftType("MiSS", Fate.PLAIN),
    "BONE": PeftType("Bone", Fate.PLAIN),
    "PEANUT": PeftType("PEANuT", Fate.PLAIN),
    "PSOFT": PeftType("PSOFT", Fate.UNSAVED),
    "PVERA": PeftType("PVeRA", Fate.PLAIN),
    "TINYLORA": PeftType("TinyLoRA", Fate.PLAIN),
    "TRAINABLE_TOKENS": PeftType("trainable tokens", Fate.PLAIN),
    "UNILORA": PeftType("UniLoRA", Fate.PLAIN),
    "VBLORA": PeftType("VB-LoRA", Fate.PLAIN),
    "VERA": PeftType("VeRA", Fate.PLAIN),
    "ADAMSS": PeftType("AdaMSS", Fate.MERGE),
    "BEFT": PeftType("BEFT", Fate.MERGE),
    "BOFT": PeftType("BOFT", Fate.MERGE),
    "C3A": PeftType("C3A", Fate.MERGE),
    "FOURIERFT": PeftType("FourierFT", Fate.MERGE),
    "FROD": PeftType("FRoD", Fate.MERGE),
    "GLORA": PeftType("GLoRA", Fate.MERGE),
    "HIRA": PeftType("HiRA", Fate.MERGE),
    "IA3": PeftType("IA³", Fate.MERGE),
    "LN_TUNING": PeftType("LayerNorm tuning", Fate.MERGE),
    "OFT": PeftType("OFT", Fate.MERGE),
    "OSF": PeftType("OSF", Fate.MERGE),
    "RANDLORA": PeftType("RandLoRA", Fate.MERGE),
    "ROAD": PeftType("RoAd", Fate.MERGE),
    "SHIRA": PeftType("SHiRA", Fate.MERGE),
    "SUPERTUNING": PeftType("SuperTuning", Fate.MERGE),
    "WAVEFT": PeftType("WaveFT", Fate.MERGE),
    "ADAPTION_PROMPT": PeftType("LLaMA-Adapter", Fate.NEVER),
    "CARTRIDGE": PeftType("Cartridge", Fate.NEVER),
    "CPT": PeftType("CPT", Fate.NEVER),
    "LILY": PeftType("Lily", Fate.NEVER),
    "MULTITASK_PROMPT_TUNING": PeftType("multitask prompt tuning", Fate.NEVER),
    "P_TUNING": PeftType("P-tuning", Fate.NEVER),
    "POLY": PeftType("Poly", Fate.NEVER),
    "PREFIX_TUNING": PeftType("prefix tuning", Fate.NEVER),
    "PROMPT_TUNING": PeftType("prompt tuning", Fate.NEVER),
    "SHADOW": PeftType("Shadow", Fate.NEVER),
    "XLORA": PeftType("X-LoRA", Fate.NEVER),
}
