"""Composing: from versions in the store to a new version, with registering's order and safety."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.access import Allows, everything
from adapters.compositions import Component, Part, Recipe, check_components, check_parts, mix_name
from adapters.errors import AdapterNotFound, BaseMismatch, NotHotServable, UsageError
from adapters.frozen import Lane
from adapters.models import Registered
from adapters.references import check_name, check_tag
from adapters.registry.intake_port import IntakeProtocol, OnStep, Progress
from adapters.registry.registering import check_names, finish
from adapters.registry.snapshot import Snapshot
from adapters.store.durable import full_disk
from adapters.store.layout import StoreLayout
from adapters.store.publish import stage

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


def resolve_parts(
    snapshot: Snapshot, parts: Sequence[Part], allows: Allows = everything
) -> tuple[str, tuple[Component, ...]]:
    """The base's name and the versions, of names that may be used; raises what a wrong part
    deserves."""
    components: list[Component] = []
    bases: dict[str, tuple[str, str]] = {}
    for part in check_parts(parts):
        resolved = snapshot.resolve(part.reference, allows)
        version = resolved.version
        if version is None:
            raise AdapterNotFound(
                f"'{part.reference}' is a base: a composition is made of adapters", param="model"
            )
        label = f"{version.adapter}:{version.label}"
        if version.lane is not Lane.HOT:
            raise NotHotServable(
                f"'{label}' is {version.method} and served in the merged lane only: a composition "
                "is made of hot versions",
                param="model",
            )
        bases.setdefault(version.base_digest, (version.base, label))
        components.append(Component(label, version.digest, part.weight))
    if len(bases) > 1:
        (one, first), (other, second) = list(bases.values())[:2]
        raise BaseMismatch(
            f"'{first}' belongs to base '{one}' and '{second}' to '{other}' or to another content "
            "of it: only adapters of one base go together",
            param="model",
        )
    if not components:
        raise UsageError("a composition needs at least one adapter")
    check_components(components)
    return next(iter(bases.values()))[0], tuple(components)


def compose(
    layout: StoreLayout,
    writer: Callable[[], RegistryWriter],
    intake: IntakeProtocol,
    snapshot: Snapshot,
    parts: Sequence[Part],
    recipe: Recipe,
    *,
    name: str | None,
    tag: str | None,
    dry_run: bool,
    actor: str,
    on_step: OnStep | None,
    progress: Progress | None,
) -> Registered:
    """See `Catalog.compose`."""
    tell = on_step or (lambda step: None)
    tags = [] if tag is None else [check_tag(tag)]
    base, components = resolve_parts(snapshot, parts)
    target = mix_name(components) if name is None else check_name(name)
    descriptor = check_names(layout, target, base)
    sources: list[tuple[Component, Path]] = [(c, layout.blob(c.digest)) for c in components]
    tell("stage")
    with stage(layout) as staging:
        tell("compose")
        with full_disk(layout.root):
            manifest = intake.compose(
                sources, recipe, base=descriptor, staging=staging.files, progress=progress
            )
        manifest = manifest.model_copy(update={"registered_by": actor})
        return finish(
            layout,
            writer,
            staging,
            manifest,
            name=target,
            base=base,
            descriptor=descriptor,
            tags=tags,
            dry_run=dry_run,
            actor=actor,
            tell=tell,
        )
