"""The seam between the catalog and the tensor side, so that neither torch nor transformers is
imported before an artifact is really read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from adapters.models import Approximate, BaseDescriptor, Inspection, Manifest
from adapters.registry.heavy_import import interrupt_deferred

Progress = Callable[[int, int], None]
OnStep = Callable[[str], None]


class IntakeProtocol(Protocol):
    """What the catalog needs of the tensor side (`adapters.intake`, `adapters.bases`)."""

    def describe_base(self, path: Path) -> BaseDescriptor:
        """Raises BaseError."""

    def examine(
        self,
        source: Path,
        *,
        bases: Sequence[tuple[str, BaseDescriptor]],
        format: str | None,
        approximate: Approximate | None = None,
        progress: Progress | None = None,
    ) -> Inspection:
        """Faults of the artifact become `problems`."""

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        progress: Progress | None = None,
        approximate: Approximate | None = None,
    ) -> Manifest:
        """Writes the canonical files into `staging`; raises ArtifactError."""


class TensorIntake:
    """The real intake. Imports torch and transformers when first used, not before."""

    def describe_base(self, path: Path) -> BaseDescriptor:
        """See IntakeProtocol."""
        from adapters.bases.describe import describe_base

        return describe_base(path)

    def examine(
        self,
        source: Path,
        *,
        bases: Sequence[tuple[str, BaseDescriptor]],
        format: str | None,
        approximate: Approximate | None = None,
        progress: Progress | None = None,
    ) -> Inspection:
        """See IntakeProtocol."""
        with interrupt_deferred():
            from adapters.intake.pipeline import examine

        return examine(
            source, bases=bases, format=format, approximate=approximate, progress=progress
        )

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        progress: Progress | None = None,
        approximate: Approximate | None = None,
    ) -> Manifest:
        """See IntakeProtocol."""
        with interrupt_deferred():
            from adapters.intake.pipeline import take_in

        return take_in(
            source,
            base=base,
            staging=staging,
            format=format,
            progress=progress,
            approximate=approximate,
        )
