"""Which texts a quantizer looks at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from adapters.errors import UsageError
from adapters.jobs.orders import Calibration
from quantize import texts
from quantize.quantizers.recipe import CalibrationUsed

# gptqmodel leaves shorter ones out, and they tell little.
MIN_TOKENS = 10


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Token ids of each text, which texts they are, and what had to be said about them."""

    samples: tuple[tuple[int, ...], ...]
    used: CalibrationUsed
    notes: tuple[str, ...]


def default_calibration() -> Path:
    """The set that comes with adapterctl."""
    return Path(str(resources.files("quantize") / "quality" / "data" / "calibration.jsonl"))


def calibration_set(model: Path, order: Calibration) -> CalibrationSet:
    """The texts that `order` asks for, by the tokenizer and chat template in `model`.

    The same order, file and tokenizer give the same set. Raises UsageError for a file that is
    missing, malformed or holds nothing long enough, BaseError for a tokenizer.
    """
    path = default_calibration() if order.path is None else Path(order.path)
    found = texts.read_texts(path)
    chosen = texts.sample(found, order.samples, order.seed)
    rows = [tuple(row) for row in texts.token_ids(model, chosen, order.tokens)]
    kept = tuple(row for row in rows if len(row) >= MIN_TOKENS)
    notes: list[str] = []
    if len(found) < order.samples:
        notes.append(f"{path.name} holds {len(found)} texts, not {order.samples}: all are used")
    if len(kept) < len(chosen):
        notes.append(
            f"{len(chosen) - len(kept)} texts are shorter than {MIN_TOKENS} tokens and left out"
        )
    if not kept:
        raise UsageError(f"{path} holds no text of {MIN_TOKENS} tokens or more to calibrate with")
    used = CalibrationUsed(
        source=path.name if order.path else "default",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        samples=len(kept),
        tokens=sum(len(row) for row in kept),
        seed=order.seed,
    )
    return CalibrationSet(kept, used, tuple(notes))
