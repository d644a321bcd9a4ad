"""How trainers write artifacts on disk: one row a format.

A new format is one file with `recognises` and `read`, and one row here. What is known by name but
not read has a row in foreign.py, so that the answer is a name and what to do, and not a riddle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import AmbiguousFormat, UnknownFormat
from adapters.intake import full, gguf, kohya, litgpt, loralib, mlx, nemo, peft, tinker, torchtune
from adapters.intake.alpha import check_alpha, refuse_contradiction
from adapters.intake.foreign import foreign_refusal
from adapters.intake.locate import Listing, explain_unknown, locate
from adapters.intake.raw import RawAdapter


@dataclass(frozen=True, slots=True)
class Format:
    """A row: the name users write after --format, its files, how it shows, and its reader.

    `recognises` looks at names, and at headers if it must, and raises nothing. `holds` are the
    methods (names of METHODS) that its trainers write in it; none: all of them.
    """

    name: str
    files: str
    recognises: Callable[[Listing], bool]
    read: Callable[[Listing], RawAdapter]
    holds: tuple[str, ...] = ()


FORMATS: tuple[Format, ...] = (
    Format(
        "peft",
        "adapter_config.json with adapter_model.safetensors or .bin",
        peft.recognises,
        peft.read,
    ),
    Format(
        "tinker",
        "the same, with Tinker's names",
        tinker.recognises,
        tinker.read,
        ("lora", "moe-experts"),
    ),
    Format(
        "mlx",
        "adapters.safetensors",
        mlx.recognises,
        mlx.read,
        ("lora", "dora", "full-fine-tune", "moe-experts"),
    ),
    Format("gguf", "one .gguf file", gguf.recognises, gguf.read, ("lora", "modules-to-save")),
    Format("litgpt", "lit_model.pth.lora", litgpt.recognises, litgpt.read, ("lora",)),
    Format("torchtune", "adapter_model.pt", torchtune.recognises, torchtune.read, ("lora", "dora")),
    Format(
        "kohya",
        "one .safetensors with lora_….lora_down.weight",
        kohya.recognises,
        kohya.read,
        ("lora", "loha", "lokr"),
    ),
    Format("nemo", "one .nemo file of NeMo 1", nemo.recognises, nemo.read, ("lora",)),
    Format(
        "loralib",
        "one .pt with X.lora_A and X.lora_B",
        loralib.recognises,
        loralib.read,
        ("lora", "trained-bias"),
    ),
    Format(
        "full",
        "config.json with model.safetensors: a whole model",
        full.recognises,
        full.read,
        ("full-fine-tune",),
    ),
)

SUPPORTED = ", ".join(f"{row.name} ({row.files})" for row in FORMATS)


def read_artifact(source: Path, format_name: str | None, alpha: float | None = None) -> RawAdapter:
    """Find the artifact in `source`, tell its format (or take the one given) and read its headers.

    `alpha` is for an artifact that does not say its own. Raises ArtifactError subclasses, and
    UsageError for an alpha that is none.
    """
    check_alpha(alpha)
    listing, notes = find_artifact(source)
    raw = _format_of(listing, format_name).read(replace(listing, alpha=alpha))
    refuse_contradiction(raw, alpha)
    if not notes:
        return raw
    return replace(raw, provenance=replace(raw.provenance, notes=notes + raw.provenance.notes))


def find_artifact(source: Path) -> tuple[Listing, tuple[str, ...]]:
    """The directory (or file) to read and notes about the choice; raises ArtifactError."""
    return locate(source, lambda found: bool(_fitting(found)))


def _format_of(listing: Listing, format_name: str | None) -> Format:
    if format_name is not None:
        for row in FORMATS:
            if row.name == format_name:
                return row
        known = ", ".join(row.name for row in FORMATS)
        raise UnknownFormat(f"'{format_name}' is no supported format; supported: {known}")
    found = _fitting(listing)
    if len(found) > 1:
        names = " or ".join(row.name for row in found)
        raise AmbiguousFormat(f"{listing.path} could be {names}; say which with --format")
    if found:
        return found[0]
    raise foreign_refusal(listing) or explain_unknown(listing, SUPPORTED)


def _fitting(listing: Listing) -> list[Format]:
    return [row for row in FORMATS if row.recognises(listing)]
