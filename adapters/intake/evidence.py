"""What gives a method away: a tensor's name, a key of the config, a file beside the adapter.

Each looks at an artifact and returns what it saw, for the message, or None.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any

from adapters.intake.peft_types import PEFT_TYPES, Fate
from adapters.intake.raw import RawAdapter
from adapters.intake.residual import exact_init

Evidence = Callable[[RawAdapter], str | None]

# Initialisations that only choose the first A and B; the base stays as it is. lora_ga changes the
# base during training, the others (fast PiSSA, CorDA, LoftQ) whenever PEFT loads the adapter; PiSSA
# and OLoRA have rows of their own.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "true", "false"})

# A tensor of an expert's or of all of them, and not of a shared one.
EXPERTS = r"\.experts\."


def tensor(pattern: str) -> Evidence:
    compiled = re.compile(pattern)

    def look(raw: RawAdapter) -> str | None:
        found = next((name for name in raw.tensors if compiled.search(name)), None)
        return f"tensor '{found}'" if found is not None else None

    return look


def key(*keys: str, unless: tuple[Any, ...] = ()) -> Evidence:
    """One of the config's `keys` is set to something (and not to one of `unless`)."""

    def look(raw: RawAdapter) -> str | None:
        for key in keys:
            value = raw.config.get(key)
            # Token index 0 or an empty object is a setting; null, false and [] are none.
            if value is not None and value is not False and value not in ([], {}, "", *unless):
                return f"{key} = {reprlib.repr(value)}"
        return None

    return look


def either(*evidence: Evidence) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return next((found for e in evidence if (found := e(raw)) is not None), None)

    return look


def other_tuner(fate: Fate) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        kind = PEFT_TYPES.get(str(raw.config.get("peft_type")))
        return f"peft_type {raw.config['peft_type']}" if kind and kind.fate is fate else None

    return look


def tuner(kind: str) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return f"peft_type {kind}" if raw.config.get("peft_type") == kind else None

    return look


def init(init: str) -> Evidence:
    def look(raw: RawAdapter) -> str | None:
        return f"init_lora_weights = '{init}'" if exact_init(raw) == init else None

    return look


def miss_bat(raw: RawAdapter) -> str | None:
    bat = (
        raw.config.get("peft_type") in ("MISS", "BONE") and raw.config.get("init_weights") == "bat"
    )
    return "init_weights = 'bat'" if bat else None


def pvera_sampling(raw: RawAdapter) -> str | None:
    sampling = raw.config.get("peft_type") == "PVERA" and raw.config.get("sample_at_inference")
    return "sample_at_inference" if sampling else None


def experts(raw: RawAdapter) -> str | None:
    """Plain LoRA on the experts of a mixture."""
    others = ("use_bdlora", "monteclora_config", "velora_config")
    if raw.config.get("peft_type") != "LORA" or key(*others)(raw) is not None:
        return None
    return tensor(EXPERTS)(raw)


def mutated_base(raw: RawAdapter) -> str | None:
    init = raw.config.get("init_lora_weights")
    if init is None or isinstance(init, bool):
        return None
    if isinstance(init, str) and init.lower() in PLAIN_INITS:
        return None
    return f"init_lora_weights = {reprlib.repr(init)}"


def other_task(raw: RawAdapter) -> str | None:
    task = raw.config.get("task_type")
    return None if task is None or task == "CAUSAL_LM" else f"task_type = {reprlib.repr(task)}"


def value_head_file(raw: RawAdapter) -> str | None:
    return f"the file {raw.extras[0]}" if raw.extras else None


def anything(raw: RawAdapter) -> str:
    return "LoRA factors"
