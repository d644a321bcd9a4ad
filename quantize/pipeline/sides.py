"""The two sides of an evaluation: what a reference or a directory means, as a model to load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.compositions import refuse_composition
from adapters.errors import BaseError, BaseNotFound, UsageError
from adapters.registry.merged_models import METHOD
from adapters.sources.uri import local_path
from quantize.jobs.context import JobContext
from quantize.merging.merge import merge
from quantize.merging.source import open_source
from quantize.merging.workspace import REPORT
from quantize.texts import Text, token_ids

# What tokenizers disagree on, if they disagree at all.
_PROBES = (
    "The quick brown fox: 12,345.67 €, naïve café!",
    "def f(x):\n    return x ** 2  # ok\n\n\tdone",
    "<|im_start|>user\n你好 </s> [INST] <pad>",
)


@dataclass(frozen=True, slots=True)
class Side:
    """A model of an evaluation. `model` is where it lies; for an adapter's version, which has to be
    merged first, where it will. `dtype`: what the engine computes in."""

    label: str
    digest: str | None
    model: Path
    dtype: str
    quantization: str | None = None
    system_prompt: str | None = None
    # The version to merge; None: the model is there.
    version: str | None = None
    # As a server knows it.
    served: str = ""


def side_of(context: JobContext, text: str, place: Path) -> Side:
    """What `text` means: a model directory (with a slash in it), a base, or a version.

    A version of the hot lane is served unmerged, with its delta in full precision, so it is merged
    in fp32 into `place`; everything else is measured as it is. Raises NotFound errors, BaseError,
    UsageError.
    """
    catalog = context.catalog
    if "/" in text:
        return _directory(Path(text), text)
    refuse_composition(text)
    try:
        base = catalog.base(text)
    except BaseNotFound:
        pass
    else:
        found = _directory(Path(local_path(base.path)), f"base {text}")
        return replace(found, digest=base.digest, served=text)
    version = catalog.show(text)
    label = f"{version.adapter}:{version.label}"
    serving = catalog.serving(text)
    if version.method == METHOD:
        found = _directory(catalog.layout.blob(version.digest), label)
        return replace(
            found, digest=version.digest, system_prompt=serving.system_prompt, served=label
        )
    # Everything that a merge reads is checked now.
    open_source(catalog, label)
    return Side(
        label=label,
        digest=version.digest,
        model=place,
        dtype="float32",
        system_prompt=serving.system_prompt,
        version=label,
        served=label,
    )


def at_hand(context: JobContext, side: Side) -> Path:
    """The side's model, merged if it has to be; a run that was killed is gone on with."""
    if side.version is not None and not side.model.is_dir():
        context.watch.step(f"merging {side.version}")
        merge(context.catalog, side.version, side.model, dtype="float32", watch=context.watch)
        (side.model / REPORT).unlink(missing_ok=True)
    return side.model


def check_comparable(one: Path, other: Path) -> None:
    """Raises UsageError unless both models cut a text into the same tokens: no figure compares
    others. One of the two may know more tokens."""
    probes = [Text(text=probe) for probe in _PROBES]
    if token_ids(one, probes, 512) != token_ids(other, probes, 512):
        raise UsageError(
            "the two models have different tokenizers: their distributions cannot be compared"
        )


def check_known(texts: Iterable[Sequence[Sequence[int]]], model: Path, label: str) -> None:
    """Raises UsageError for a token that the model `label` has no embedding for."""
    size = _vocabulary(_config(model))
    largest = max((max(row) for rows in texts for row in rows if row), default=0)
    if size is not None and largest >= size:
        raise UsageError(
            f"the texts hold a token that {label} does not know (number {largest} of {size}): give "
            "--eval texts without the other's added tokens"
        )


def size_of(model: Path) -> int:
    """Bytes of a model's weights on disk."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _directory(model: Path, label: str) -> Side:
    config = _config(model)
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    return Side(
        label=label,
        digest=None,
        model=model,
        dtype="auto",
        quantization=None if method is None else str(method),
    )


def _config(model: Path) -> dict[str, Any]:
    try:
        found = json.loads((model / "config.json").read_bytes())
    except OSError as fault:
        raise BaseError(
            f"{model} is no model's directory: cannot read its config.json ({fault.strerror})"
        ) from None
    except ValueError:
        raise BaseError(f"{model}/config.json is not JSON") from None
    if not isinstance(found, dict):
        raise BaseError(f"{model}/config.json is not an object")
    return found


def _vocabulary(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")
    found = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return found if isinstance(found, int) else None
