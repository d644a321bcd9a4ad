"""PEFT's tuners whose change is a low-rank product: one row each, in METHODS."""

from __future__ import annotations

from adapters.frozen import Lane
from adapters.intake.adalora import plan_adalora
from adapters.intake.deft import plan_deft
from adapters.intake.delora import plan_delora
from adapters.intake.evidence import (
    miss_bat,
    pvera_sampling,
    tuner,
)
from adapters.intake.gralora import plan_gralora
from adapters.intake.hra import plan_hra
from adapters.intake.loha import plan_loha
from adapters.intake.lokr import plan_lokr
from adapters.intake.method import MERGE, Method
from adapters.intake.miss import plan_miss
from adapters.intake.miss_bat import plan_miss_bat
from adapters.intake.peanut import plan_peanut
from adapters.intake.tinylora import plan_tinylora
from adapters.intake.unilora import plan_unilora
from adapters.intake.vblora import plan_vblora
from adapters.intake.vera import plan_pvera, plan_vera

TUNERS: tuple[Method, ...] = (
    Method("adalora", "AdaLoRA", tuner("ADALORA"), Lane.HOT, to_lora=plan_adalora),
    Method("vera", "VeRA", tuner("VERA"), Lane.HOT, to_lora=plan_vera),
    Method(
        "pvera-sampling",
        "PVeRA",
        pvera_sampling,
        None,
        "it draws its change anew for every token, which neither lane can do; set "
        "sample_at_inference to false to serve its mean",
    ),
    Method("pvera", "PVeRA", tuner("PVERA"), Lane.HOT, to_lora=plan_pvera),
    Method("loha", "LoHa", tuner("LOHA"), Lane.HOT, to_lora=plan_loha),
    Method("lokr", "LoKr", tuner("LOKR"), Lane.HOT, to_lora=plan_lokr),
    Method(
        "miss-bat",
        "MiSS",
        miss_bat,
        Lane.MERGED,
        f"in this mode it multiplies the base's weight and so has full rank; {MERGE}",
        to_merge=plan_miss_bat,
        limits="linear layers that r divides",
    ),
    Method("miss", "MiSS", tuner("MISS"), Lane.HOT, to_lora=plan_miss),
    Method("bone", "Bone", tuner("BONE"), Lane.HOT, to_lora=plan_miss),
    Method("gralora", "GraLoRA", tuner("GRALORA"), Lane.HOT, to_lora=plan_gralora),
    Method("delora", "DeLoRA", tuner("DELORA"), Lane.HOT, to_lora=plan_delora),
    Method("vblora", "VB-LoRA", tuner("VBLORA"), Lane.HOT, to_lora=plan_vblora),
    Method(
        "hra",
        "HRA",
        tuner("HRA"),
        Lane.HOT,
        to_lora=plan_hra,
        limits="linear layers; needs the base's weights",
    ),
    Method(
        "deft",
        "DEFT",
        tuner("DEFT"),
        Lane.HOT,
        to_lora=plan_deft,
        limits="linear layers; needs the base's weights",
    ),
    Method(
        "peanut",
        "PEANuT",
        tuner("PEANUT"),
        Lane.HOT,
        to_lora=plan_peanut,
        limits="linear layers, elementwise activations; needs the base's weights",
    ),
    Method("tinylora", "TinyLoRA", tuner("TINYLORA"), Lane.HOT, to_lora=plan_tinylora),
    Method("unilora", "UniLoRA", tuner("UNILORA"), Lane.HOT, to_lora=plan_unilora),
)
