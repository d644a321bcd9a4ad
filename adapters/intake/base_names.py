"""What trainers call the base, and which registered base that is."""

from __future__ import annotations

import re

# Unsloth's own 4-bit and 8-bit copies of models: NAME-bnb-4bit, NAME-unsloth-bnb-4bit (dynamic).
_QUANTIZED_COPY = re.compile(r"(?:-unsloth)?-bnb-[48]bit/?\Z", re.IGNORECASE)


def original_name(hint: str) -> str:
    """The model that `hint` is a quantized copy of; `hint` itself if it is none.

    QLoRA trains against a copy rounded to 4 bits, yet its adapter is meant for the original: that
    is what its trainers merge it into and what it is served on.
    """
    return _QUANTIZED_COPY.sub("", hint)


def same_model(name: str, hint: str | None) -> bool:
    """Does the trainer's `base_model_name_or_path` end in this base's name?"""
    if hint is None:
        return False
    return original_name(hint).rstrip("/").rpartition("/")[2].lower() == name.lower()


def quantized_note(hint: str | None) -> tuple[str, ...]:
    """A sentence on the model that was really trained on, if it was a quantized copy."""
    if hint is None or original_name(hint) == hint:
        return ()
    return (f"trained on the quantized copy {hint}; its base in 16 bits is {original_name(hint)}",)
