"""Compositions: several adapters of one base as one, `a*0.7+b*0.3`.

A composition is named by what it is made of, digests and weights, so the same one is made once:
`mix-<16 hex>` is the adapter under which one that a request asked for is kept.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import Field

from adapters.errors import InvalidReference, UsageError
from adapters.frozen import Frozen
from adapters.references import MAX_REFERENCE_LENGTH, parse_reference

MAX_PARTS = 16
MIN_WEIGHT = 1e-4
MAX_WEIGHT = 100.0
# Neither is a character of a reference, so a composition is told from one at a glance.
_PLUS, _TIMES = "+", "*"
# No plus sign in a number: it parts the adapters.
_WEIGHT = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE]-?\d{1,2})?")
_MIX = re.compile(r"mix-[0-9a-f]{16}")


class CompositionMethod(StrEnum):
    """How the changes are put together.

    `sum`: weighted, exact. `ties` (arXiv 2306.01708) and `dare` (arXiv 2311.03099) thin each
    change out first, so that they get in each other's way less.
    """

    SUM = "sum"
    TIES = "ties"
    DARE = "dare"


class Part(Frozen):
    """One adapter of a composition and how strongly it is in it."""

    reference: str
    weight: float = Field(allow_inf_nan=False)


class Recipe(Frozen):
    """How parts become one. `rank` None: as many as an exact result takes (sum), or as the parts
    have together. `density` is the share of values that ties and dare keep; `seed` is dare's.
    """

    method: CompositionMethod = CompositionMethod.SUM
    rank: int | None = Field(None, ge=1, le=512)
    density: float = Field(0.5, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


@dataclass(frozen=True, slots=True)
class Component:
    """A part, resolved to one immutable version."""

    label: str
    digest: str
    weight: float


def is_composition(text: str) -> bool:
    """Whether `model` asks for several adapters at once."""
    return _PLUS in text or _TIMES in text


def refuse_composition(reference: str) -> None:
    """Raises UsageError for a composition where one version is needed."""
    if is_composition(reference):
        raise UsageError(
            f"'{reference}' is a composition: make it a version first, with "
            "`adapterctl compose NEW REF=WEIGHT...`, and take that"
        )


def parse_composition(text: str) -> tuple[Part, ...]:
    """`a*0.7+b:prod*0.3`; a weight that is left out is 1. Raises InvalidReference."""
    if len(text) > MAX_PARTS * MAX_REFERENCE_LENGTH:
        raise InvalidReference("this composition is too long", param="model")
    return check_parts(tuple(_part(piece.strip(), text) for piece in text.split(_PLUS)))


def parse_part(text: str) -> Part:
    """`a=0.7`, as on the command line; raises InvalidReference."""
    reference, equals, weight = text.partition("=")
    parse_reference(reference)
    return Part(reference=reference, weight=_weight(weight, text) if equals else 1.0)


def check_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts; raises InvalidReference if they make no composition."""
    if len(parts) > MAX_PARTS:
        raise InvalidReference(
            f"a composition has at most {MAX_PARTS} adapters, not {len(parts)}", param="model"
        )
    for part in parts:
        parse_reference(part.reference)
        if not MIN_WEIGHT <= abs(part.weight) <= MAX_WEIGHT:
            raise InvalidReference(
                f"the weight {part.weight:g} of '{part.reference}' must be {MIN_WEIGHT:g} to "
                f"{MAX_WEIGHT:g} in size",
                param="model",
            )
    return tuple(parts)


def check_components(components: Sequence[Component]) -> None:
    """Raises UsageError when one version is named twice."""
    seen: dict[str, str] = {}
    for component in components:
        other = seen.setdefault(component.digest, component.label)
        if other is not component.label:
            raise UsageError(
                f"'{other}' and '{component.label}' are the same version: name it once, with the "
                "sum of the weights"
            )


def mix_name(components: Iterable[Component]) -> str:
    """The adapter that holds the exact sum of these, whatever their order."""
    made_of = "\n".join(sorted(f"{c.digest} {c.weight!r}" for c in components))
    return f"mix-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def is_mix(name: str) -> bool:
    """Whether a request made this adapter."""
    return _MIX.fullmatch(name) is not None


def formula(components: Iterable[Component]) -> str:
    """For people: `0.7·a:v1 + 0.3·b:v2`."""
    return " + ".join(f"{c.weight:g}·{c.label}" for c in components)


def _part(piece: str, text: str) -> Part:
    reference, times, weight = piece.partition(_TIMES)
    if not reference:
        raise InvalidReference(
            f"'{text}' is no composition: write NAME*WEIGHT+NAME*WEIGHT, for example a*0.7+b*0.3",
            param="model",
        )
    return Part(reference=reference.strip(), weight=_weight(weight.strip(), text) if times else 1.0)


def _weight(text: str, whole: str) -> float:
    value = float(text) if _WEIGHT.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise InvalidReference(
            f"'{text}' in '{whole}' is no weight: write a number, for example 0.7", param="model"
        )
    return value
