"""The seam between the catalog and the tensor side, so that neither torch nor transformers is
imported before an artifact is really read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from adapters.compositions import Component, Recipe
from adapters.models import Approximate, BaseDescriptor, Inspection, Manifest
from adapters.registry.interrupts import interrupt_deferred

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
        alpha: float | None = None,
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
        alpha: float | None = None,
        progress: Progress | None = None,
        approximate: Approximate | None = None,
    ) -> Manifest:
        """Writes the canonical files into `staging`; raises ArtifactError."""

    def compose(
        self,
        components: Sequence[tuple[Component, Path]],
        recipe: Recipe,
        *,
        base: BaseDescriptor,
        staging: Path,
        progress: Progress | None = None,
    ) -> Manifest:
        """Writes the composition of stored versions into `staging`; raises AdapterctlError."""


class TensorIntake:
    """The real intake. Imports torch and transformers when first used, not before."""

    def describe_base(self, path: Path) -> BaseDescriptor:
        """See IntakeProtocol."""
        # Imports the libraries itself, guarded, once the directory has proved worth it.
        from adapters.bases.describe import describe_base

        return describe_base(path)

    def examine(
        self,
        source: Path,
        *,
        bases: Sequence[tuple[str, BaseDescriptor]],
        format: str | None,
        alpha: float | None = None,
        approximate: Approximate | None = None,
        progress: Progress | None = None,
    ) -> Inspection:
        """See IntakeProtocol."""
        with interrupt_deferred():
            from adapters.intake.pipeline import examine

        return examine(
            source,
            bases=bases,
            format=format,
            alpha=alpha,
            approximate=approximate,
            progress=progress,
        )

    def take_in(
        self,
        source: Path,
        *,
        base: BaseDescriptor,
        staging: Path,
        format: str | None,
        alpha: float | None = None,
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
            alpha=alpha,
            progress=progress,
            approximate=approximate,
        )

    def compose(
        self,
        components: Sequence[tuple[Component, Path]],
        recipe: Recipe,
        *,
        base: BaseDescriptor,
        staging: Path,
        progress: Progress | None = None,
    ) -> Manifest:
        """See IntakeProtocol."""
        with interrupt_deferred():
            from adapters.intake.composing import compose_into

        return compose_into(staging, components, recipe, base=base, progress=progress)
