"""Bone, which PEFT renamed to MiSS: the same adapter under other names.

PEFT 0.14 to 0.17 wrote it; later ones know no peft_type BONE. Shapes and formulas of its modes
are MiSS's of the same name (peft/tuners/bone/layer.py of 0.14.0 and 0.17.1 against
peft/tuners/miss/layer.py of 0.21.2: outputs equal bit for bit in all three).
"""

from __future__ import annotations

import re
from dataclasses import replace

from adapters.intake.raw import RawAdapter

_BLOCK = re.compile(r"\.bone_block(?=\.|$)")


def as_miss(raw: RawAdapter) -> RawAdapter:
    """A Bone artifact as the MiSS artifact it is; any other as it is."""
    if raw.config.get("peft_type") != "BONE":
        return raw
    named = {_BLOCK.sub(".miss_block", name): tensor for name, tensor in raw.tensors.items()}
    return replace(raw, config={**raw.config, "peft_type": "MISS"}, tensors=named)
