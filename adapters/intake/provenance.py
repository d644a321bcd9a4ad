"""Where an artifact came from: hints the trainer left, and the hash of what was read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import SourceUnreadable
from adapters.intake.locate import Listing

_README_BYTES = 65_536
_MAX_TEXT = 300
# Tags and generated-by lines in the model card, the most specific first.
_CARD_MARKS = (
    ("unsloth", "Unsloth"),
    ("axolotl", "Axolotl"),
    ("llama-factory", "LLaMA-Factory"),
    ("autotrain", "AutoTrain"),
    ("trl", "TRL"),
)
_FILE_MARKS = (
    ("automodel_peft_config.json", "NeMo Automodel"),
    ("additional_config.json", "ms-swift"),
    ("training_args.bin", "Transformers"),
)


def guess_trainer(listing: Listing) -> str | None:
    """The trainer's name from the files beside the adapter; a guess, None without a hint."""
    card = _model_card(listing).lower()
    for mark, trainer in _CARD_MARKS:
        if re.search(rf"(?<![\w-]){mark}(?![\w-])", card):
            return trainer
    return next((trainer for file, trainer in _FILE_MARKS if file in listing.names), None)


def _model_card(listing: Listing) -> str:
    if "README.md" not in listing.names:
        return ""
    try:
        with (listing.path / "README.md").open("rb") as file:
            return file.read(_README_BYTES).decode("utf-8", "replace")
    except OSError:
        # The card only serves a guess; an adapter without one is as good.
        return ""


def short_text(config: Mapping[str, Any], key: str) -> str | None:
    """A config's string, one bounded line of it, or None."""
    value = config.get(key)
    if not isinstance(value, str) or not value.strip():
        return None
    return " ".join(value.split())[:_MAX_TEXT]


def source_sha256(files: Sequence[Path]) -> str:
    """One hash over the names and bytes of `files`, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(files, key=lambda item: item.name):
        try:
            with path.open("rb") as file:
                inner = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as fault:
            raise SourceUnreadable(f"cannot read {path}: {fault.strerror or fault}") from fault
        total.update(f"{path.name}\n{inner}\n".encode())
    return total.hexdigest()
