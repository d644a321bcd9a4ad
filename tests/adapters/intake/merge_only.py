"""Right artifacts that no plain LoRA expresses: registered in the lane `merged`, with the reason.

`MERGE_ONLY[name](folder, base)` writes one into the empty `folder`, against any base with Llama's
module names; `says` are parts of the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.models import BaseDescriptor
from tests.adapters.intake.artifact_builders import Build
from tests.adapters.intake.bad_tuners import loha


@dataclass(frozen=True)
class MergeOnly:
    """An artifact for the merged lane; calling it writes it."""

    build: Build
    method: str
    rank: int | None
    says: tuple[str, ...]

    def __call__(self, folder: Path, base: BaseDescriptor) -> None:
        self.build(folder, base)


MERGE_ONLY: dict[str, MergeOnly] = {
    # The change's rank is capped by the module's size only where that is computed: engines are not.
    "loha-rank-23": MergeOnly(loha(23).write, "loha", 529, ("needs rank 529", "up to 512")),
}
