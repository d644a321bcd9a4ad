"""A number for each module: a default and a pattern, by the rule of C3A and FourierFT."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from adapters.errors import InvalidConfig
from adapters.intake.patterns import Budget, KeyPatterns
from adapters.intake.peft_config import whole_number
from adapters.models import BaseDescriptor

_MAX_PATTERNS = 50_000
# peft/tuners/c3a/model.py, fourierft/model.py: something must stand before the key.
_AFTER_A_DOT = r".*\.{}$"
_ANYWHERE = r"(.*\.)?({})$"


def module_sizes(
    config: Mapping[str, Any],
    key: str,
    default: int,
    base: BaseDescriptor,
    *,
    anywhere: bool = False,
) -> dict[str, int]:
    """The number of every module of the base; raises InvalidConfig.

    The first key of `key`_pattern that matches a module's end counts, else the key that is its
    whole name; with `anywhere` by the common rule (WaveFT), where a whole name matches too.
    """
    where = f"{key}_pattern"
    patterns = config.get(where) or {}
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise InvalidConfig(
            f"adapter_config.json: {where} is {reprlib.repr(patterns)}; it must map names to "
            f"numbers, at most {_MAX_PATTERNS}"
        )
    common = whole_number(config, key, default, 1)
    own = {
        name: whole_number({f"{where}['{name}']": value}, f"{where}['{name}']", 1, 1)
        for name, value in patterns.items()
    }
    within = _ANYWHERE if anywhere else _AFTER_A_DOT
    keys = KeyPatterns(own, where, Budget(), within)
    found = {}
    for spec in base.modules:
        match = keys.key_for(spec.name)
        found[spec.name] = own.get(spec.name if match is None else match, common)
    return found
