"""An alpha that the user gives, for artifacts that do not say their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapters.errors import InvalidConfig, UsageError
from adapters.intake.raw import RawAdapter

# loralib stores no alpha at all, so there is nothing to contradict.
_WITHOUT = "loralib"


def check_alpha(alpha: float | None) -> None:
    """Raises UsageError unless it is a finite number above 0, or not given."""
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise UsageError(f"--alpha is {alpha:g}; it must be a finite number above 0", param="alpha")


def with_given_alpha(config: Mapping[str, Any], alpha: float | None) -> Mapping[str, Any]:
    """The config with a `lora_alpha` of 0, which verl's merger writes for unknown, filled in."""
    stored = config.get("lora_alpha")
    if alpha is None or type(stored) not in (int, float) or stored != 0:
        return config
    return {**config, "lora_alpha": alpha}


def given_note(alpha: float | None) -> tuple[str, ...]:
    """For the manifest of an artifact whose alpha is the user's word."""
    return () if alpha is None else (f"alpha = {alpha:g} was given with --alpha",)


def refuse_contradiction(raw: RawAdapter, alpha: float | None) -> None:
    """Raises InvalidConfig where the artifact says another alpha than the one given."""
    if alpha is None or raw.format == _WITHOUT:
        return
    stored = raw.config.get("lora_alpha", raw.config.get("alpha"))
    if stored != alpha or raw.config.get("alpha_pattern"):
        raise InvalidConfig(
            f"--alpha {alpha:g} contradicts the artifact, which says its own scale (alpha = "
            f"{str(stored)[:40]}); leave it out: it is for artifacts without one (loralib) or "
            "with 0 (verl)"
        )
