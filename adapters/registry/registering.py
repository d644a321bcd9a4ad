"""Registering: from an artifact to a version, in the order that makes a crash harmless."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import AlreadyExists, ArtifactError, BaseNotFound
from adapters.models import Approximate, BaseDescriptor, Inspection, Manifest, Registered
from adapters.references import check_name, check_tag
from adapters.registry import reader
from adapters.registry.intake_port import IntakeProtocol, OnStep, Progress
from adapters.serving.document import SERVING_FILE, Serving, ServingChoice
from adapters.sources.checksum import check_file
from adapters.sources.policy import Policy
from adapters.sources.schemes import fetch, needs_place, rename, told_as
from adapters.sources.uri import Address
from adapters.store.durable import full_disk, store_io
from adapters.store.layout import StoreLayout
from adapters.store.locks import store_lock
from adapters.store.publish import Sealed, Staging, publish, seal, stage
from adapters.store.uploads import find_upload

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter


def register(
    layout: StoreLayout,
    writer: Callable[[], RegistryWriter],
    intake: IntakeProtocol,
    source: Address,
    *,
    name: str,
    base: str,
    tag: str | None,
    format: str | None,
    alpha: float | None,
    serving: ServingChoice,
    dry_run: bool,
    policy: Policy,
    approximate: Approximate | None,
    actor: str,
    on_step: OnStep | None,
    progress: Progress | None,
) -> Registered:
    """See `Catalog.register`."""
    from adapters.serving.beside import read_beside
    from adapters.serving.training import described

    tell = on_step or (lambda step: None)
    check_name(name)
    tags = [] if tag is None else [check_tag(tag)]
    descriptor = check_names(layout, name, base)
    named, source = source, _as_path(layout, source)
    remote = needs_place(source)
    tell("stage")
    with stage(layout) as staging:
        local = Path(source.text)
        if remote:
            local = fetch_into(layout, staging, source, policy, tell, progress)
        tell("write")
        with full_disk(layout.root), told_as(source, local):
            beside = read_beside(local, base=descriptor, choice=serving)
            manifest = intake.take_in(
                local,
                base=descriptor,
                staging=staging.files,
                format=format,
                alpha=alpha,
                progress=progress,
                approximate=approximate,
            )
        write_serving(layout, beside.serving, staging)
        notes = manifest.notes + beside.notes
        manifest = described(manifest, beside.training).model_copy(
            update={"notes": notes, "registered_by": actor}
        )
        if remote or source is not named:
            manifest = manifest.model_copy(update={"source": source.shown})
        return finish(
            layout,
            writer,
            staging,
            manifest,
            name=name,
            base=base,
            descriptor=descriptor,
            tags=tags,
            dry_run=dry_run,
            actor=actor,
            tell=tell,
        )


def finish(
    layout: StoreLayout,
    writer: Callable[[], RegistryWriter],
    staging: Staging,
    manifest: Manifest,
    *,
    name: str,
    base: str,
    descriptor: BaseDescriptor,
    tags: Sequence[str],
    dry_run: bool,
    actor: str,
    tell: OnStep,
) -> Registered:
    """What is staged becomes a version of `name`; a dry run says which."""
    tell("seal")
    sealed = seal(layout, staging, base_digest=descriptor.digest)
    if dry_run:
        return _would_register(layout, name, base, sealed, manifest, tags)
    number, created, pointing = _publish_and_commit(
        layout, writer(), staging, sealed, manifest, name, base, tags, actor, tell
    )
    tell("done")
    return _registered(name, base, number, sealed.digest, manifest, pointing, created)


def inspect(
    layout: StoreLayout,
    intake: IntakeProtocol,
    source: Address,
    *,
    bases: Sequence[tuple[str, BaseDescriptor]],
    format: str | None,
    alpha: float | None,
    policy: Policy,
    approximate: Approximate | None,
    on_step: OnStep | None,
    progress: Progress | None,
) -> Inspection:
    """See `Catalog.inspect`. Stages only what has to be fetched: a directory needs no writing."""

    def examined(local: Path) -> Inspection:
        found = intake.examine(
            local,
            bases=bases,
            format=format,
            alpha=alpha,
            approximate=approximate,
            progress=progress,
        )
        return _with_beside(found, local, bases)

    named, source = source, _as_path(layout, source)
    if not needs_place(source):
        local = Path(source.text)
        found = examined(local)
        return found if source is named else _told_as(found, source, local)
    with stage(layout) as staging:
        tell = on_step or (lambda step: None)
        local = fetch_into(layout, staging, source, policy, tell, progress)
        tell("read")
        return _told_as(examined(local), source, local)


def _as_path(layout: StoreLayout, source: Address) -> Address:
    """An upload as the file that it is; a local file with a checksum is compared with it."""
    if source.scheme == "upload":
        file = find_upload(layout, source.text.partition(":")[2])
        source = Address("path", str(file), f"upload:{file.name}", source.sha256)
    if source.scheme == "path" and source.sha256 is not None:
        check_file(Path(source.text), source.sha256, source.shown)
    return source


def _told_as(found: Inspection, source: Address, local: Path) -> Inspection:
    problems = tuple(rename(problem, source, local) for problem in found.problems)
    reasons = tuple(rename(reason, source, local) for reason in found.reasons)
    return found.model_copy(update={"problems": problems, "reasons": reasons})


def _with_beside(
    found: Inspection, local: Path, bases: Sequence[tuple[str, BaseDescriptor]]
) -> Inspection:
    """The inspection with what lies around the weights; nothing where no artifact was found."""
    from adapters.serving.beside import read_beside
    from adapters.serving.training import precision_of_name

    if found.format is None:
        return found
    base = next((descriptor for name, descriptor in bases if name == found.base), None)
    try:
        beside = read_beside(local, base=base, choice=ServingChoice())
    except ArtifactError as fault:
        return found.model_copy(update={"problems": (*found.problems, fault.message)})
    told = beside.training
    named = precision_of_name(found.base_by_trainer) if found.base_by_trainer else None
    return found.model_copy(
        update={
            "trainer": told.trainer or found.trainer,
            "precision": told.precision or named,
            "brings": beside.serving.lines(),
        }
    )


def write_serving(layout: StoreLayout, serving: Serving, staging: Staging) -> None:
    """Stage what the version brings to its requests, if it brings anything."""
    if not serving.empty:
        with store_io(layout.root):
            (staging.files / SERVING_FILE).write_bytes(serving.encode())


def fetch_into(
    layout: StoreLayout,
    staging: Staging,
    source: Address,
    policy: Policy,
    tell: OnStep,
    progress: Progress | None,
) -> Path:
    """The source as a path in the staging directory, which vanishes with it."""
    place = staging.root / "source"
    with store_io(layout.root):
        place.mkdir()
        return fetch(source, place, policy, tell, progress)


def check_names(layout: StoreLayout, name: str, base: str) -> BaseDescriptor:
    """All that can be refused before tensors are read."""
    with reader.reading(layout.root) as connection:
        descriptor = reader.load_descriptor(connection, base)
        taken = reader.load_bases(connection, [name])
    if descriptor is None:
        raise BaseNotFound(f"there is no base '{base}': `adapterctl base ls` lists what there is")
    if taken:
        raise AlreadyExists(f"'{name}' is a base: an adapter needs another name")
    return descriptor


def _publish_and_commit(
    layout: StoreLayout,
    writer: RegistryWriter,
    staging: Staging,
    sealed: Sealed,
    manifest: Manifest,
    name: str,
    base: str,
    tags: Sequence[str],
    actor: str,
    tell: OnStep,
) -> tuple[int, bool, list[str]]:
    """(version number, created, all tags that point at it now)."""
    from adapters.registry.versions import add_version, tags_of

    # Shared with other registrations; keeps gc out until the registry names the blob.
    with store_lock(layout, shared=True):
        tell("publish")
        publish(layout, staging, sealed)
        tell("commit")
        with writer.transaction() as connection:
            number, created = add_version(
                connection,
                name=name,
                base=base,
                digest=sealed.digest,
                size_bytes=sealed.size_bytes,
                manifest=manifest,
                tags=tags,
                actor=actor,
            )
            return number, created, tags_of(connection, name, number)


def _would_register(
    layout: StoreLayout,
    name: str,
    base: str,
    sealed: Sealed,
    manifest: Manifest,
    tags: Sequence[str],
) -> Registered:
    with reader.reading(layout.root) as connection:
        record = reader.load_adapters(connection, [name]).get(name)
        number = reader.last_number(connection, name) + 1
    versions = record.versions.values() if record is not None else ()
    same = next((v.number for v in versions if v.digest == sealed.digest), None)
    present = record.tags if record is not None else {}
    pointing = {"latest", *tags, *(tag for tag, value in present.items() if value == same)}
    return _registered(name, base, same or number, sealed.digest, manifest, pointing, same is None)


def _registered(
    name: str,
    base: str,
    number: int,
    digest: str,
    manifest: Manifest,
    tags: Iterable[str],
    created: bool,
) -> Registered:
    return Registered(
        name=name,
        version=f"v{number}",
        digest=digest,
        method=manifest.method,
        lane=manifest.lane,
        reasons=manifest.reasons,
        format=manifest.format,
        rank=manifest.rank,
        base=base,
        tags=tuple(sorted(tags)),
        created=created,
        approximate=manifest.approximation is not None,
    )
