"""What a row of the table of methods says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.frozen import Lane
from adapters.intake.evidence import Evidence
from adapters.intake.lora import LoraPlan
from adapters.intake.merging import MergePlan
from adapters.intake.raw import RawAdapter
from adapters.models import Approximate, BaseDescriptor

# (artifact, base, rank, directory for scratch files, progress in bytes)
ToApproximation = Callable[
    [RawAdapter, BaseDescriptor, Approximate, Path | None, Callable[[int, int], None]], LoraPlan
]


@dataclass(frozen=True, slots=True)
class Method:
    """A row: how a method shows, which lane it takes, and its plans or the refusal.

    `recognise` returns what gave it away (for the message) or None. `refusal` says why it is no
    plain LoRA; a row has either `refusal` or `to_lora`. With `to_merge` it is served in the merged
    lane, `refusal` being the reason (beside `to_lora`: where that finds it not hot, for its
    reason); a refusal without it is final. `to_approximation` makes a plain LoRA that comes near
    it, for who asks. `limits` is for docs/formats.md.
    """

    name: str
    title: str
    recognise: Evidence
    lane: Lane | None
    refusal: str | None = None
    to_lora: Callable[[RawAdapter, BaseDescriptor], LoraPlan] | None = None
    to_merge: Callable[[RawAdapter, BaseDescriptor], MergePlan] | None = None
    to_approximation: ToApproximation | None = None
    limits: str = ""


# Ends a refusal of what a merge could serve.
MERGE = "merge it into the base and serve the result"
