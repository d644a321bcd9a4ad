"""How trainers write artifacts on disk: one row a format.

A new format is one file with `recognises` and `read`, and one row here. Formats that are known by
name but not read yet have a row in NOT_YET, so that the answer is a name and not a riddle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import AmbiguousFormat, UnknownFormat
from adapters.intake import full, gguf, litgpt, mlx, peft, torchtune
from adapters.intake.locate import Listing, explain_unknown, locate
from adapters.intake.raw import RawAdapter


@dataclass(frozen=True, slots=True)
class Format:
    """A row: the name users write after --format, how it shows, and its reader."""

    name: str
    recognises: Callable[[Listing], bool]
    read: Callable[[Listing], RawAdapter]


FORMATS: tuple[Format, ...] = (
    Format("peft", peft.recognises, peft.read),
    Format("mlx", mlx.recognises, mlx.read),
    Format("gguf", gguf.recognises, gguf.read),
    Format("litgpt", litgpt.recognises, litgpt.read),
    Format("torchtune", torchtune.recognises, torchtune.read),
    Format("full", full.recognises, full.read),
)

NOT_YET: tuple[tuple[str, Callable[[Listing], bool]], ...] = (
    ("NeMo", lambda listing: listing.has(r".*\.nemo|adapter_metadata\.json")),
    ("kohya", lambda listing: listing.has(r"(lora|lycoris).*\.safetensors")),
)


def read_artifact(source: Path, format_name: str | None) -> RawAdapter:
    """Find the artifact in `source`, tell its format (or take the one given) and read its headers.

    Raises ArtifactError subclasses.
    """
    listing, notes = locate(source)
    raw = _format_of(listing, format_name).read(listing)
    if not notes:
        return raw
    return replace(raw, provenance=replace(raw.provenance, notes=notes + raw.provenance.notes))


def _format_of(listing: Listing, format_name: str | None) -> Format:
    if format_name is not None:
        for row in FORMATS:
            if row.name == format_name:
                return row
        known = ", ".join(row.name for row in FORMATS)
        raise UnknownFormat(f"'{format_name}' is no supported format; supported: {known}")
    found = [row for row in FORMATS if row.recognises(listing)]
    if len(found) > 1:
        names = " or ".join(row.name for row in found)
        raise AmbiguousFormat(f"{listing.path} could be {names}; say which with --format")
    if found:
        return found[0]
    for name, recognises in NOT_YET:
        if recognises(listing):
            raise UnknownFormat(
                f"{listing.path} is in the format {name}, which is not supported yet; "
                "convert it to PEFT's first"
            )
    raise explain_unknown(listing)
