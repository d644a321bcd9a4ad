"""What every document of this project is made of, and the lanes that most of them name."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about keys: an unknown one is a mistake, not an extension."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lane(StrEnum):
    """How a version is served: swapped in per request, or merged into an engine of its own."""

    HOT = "hot"
    MERGED = "merged"
