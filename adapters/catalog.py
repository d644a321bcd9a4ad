"""Everything that can be done with one store: what the CLI and the admin API call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from adapters.access import no_adapter
from adapters.audit import audited
from adapters.catalog_backups import BackupCatalog
from adapters.catalog_bases import BaseCatalog
from adapters.catalog_jobs import JobCatalog
from adapters.catalog_keys import KeyCatalog
from adapters.catalog_lanes import LaneCatalog
from adapters.catalog_models import ModelCatalog
from adapters.compositions import Part, Recipe
from adapters.errors import (
    Conflict,
    InvalidReference,
    UsageError,
)
from adapters.models import (
    AdapterRecord,
    Approximate,
    Inspection,
    Manifest,
    Registered,
    TagChange,
    VersionRecord,
)
from adapters.references import Reference, check_name, parse_reference
from adapters.registry import reader
from adapters.registry.faults import registry_errors
from adapters.registry.filtering import EVERYTHING, AdapterFilter, matching_names
from adapters.registry.intake_port import IntakeProtocol, OnStep, Progress, TensorIntake
from adapters.registry.opening import check_store, init_store
from adapters.registry.snapshot import Snapshot, load_snapshot, select_version
from adapters.serving.document import NO_CHOICE, Serving, ServingChoice
from adapters.sources.policy import policy_from_environment
from adapters.sources.uri import parse_source
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.registry.writer import RegistryWriter
    from adapters.store.gc import GcReport
    from adapters.store.verify import VerifyReport


# Enough for every running snapshot to catch up step by step; older ones read everything again.
_CHANGES_KEPT = 10_000


class Catalog(BaseCatalog, JobCatalog, KeyCatalog, ModelCatalog, LaneCatalog, BackupCatalog):
    """One store. Any thread may use it; every method raises AdapterctlError subclasses only."""

    def __init__(self, root: Path, *, intake: IntakeProtocol | None = None):
        """For `init` and `open`, which check the store first."""
        self.layout = StoreLayout(root)
        self._intake: IntakeProtocol = intake or TensorIntake()
        self._registry: RegistryWriter | None = None

    @classmethod
    def init(cls, root: Path, *, intake: IntakeProtocol | None = None) -> Catalog:
        """Makes the store if there is none yet, and opens it."""
        init_store(StoreLayout(root))
        return cls.open(root, intake=intake)

    @classmethod
    def open(cls, root: Path, *, intake: IntakeProtocol | None = None) -> Catalog:
        """Opens a store; raises StoreNotFound, StoreTooNew, StoreDamaged."""
        catalog = cls(root, intake=intake)
        check_store(catalog.layout)
        return catalog

    def close(self) -> None:
        """Closes the database; the catalog opens it again if it is used again."""
        registry, self._registry = self._registry, None
        if registry is not None:
            registry.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- adapters ----------------------------------------------------------------------------

    @audited("register", "name")
    def register(
        self,
        source: str,
        *,
        name: str,
        base: str,
        tag: str | None = None,
        format: str | None = None,
        alpha: float | None = None,
        serving: ServingChoice = NO_CHOICE,
        dry_run: bool = False,
        allow_private_urls: bool = False,
        approximate: Approximate | None = None,
        actor: str = "local",
        on_step: OnStep | None = None,
        progress: Progress | None = None,
    ) -> Registered:
        """Takes an artifact in and makes it a version of `name`; `latest` and `tag` move to it.

        `source` is a path or a URL (docs/sources.md). `serving` is what the user wants applied to
        its requests, before what the artifact says. A dry run does all of it but keep the result.
        `approximate` makes a plain LoRA of a full fine-tune. `on_step` hears `stage`, `fetch`,
        `unpack`, `write`, `seal`, `publish`, `commit`, `done` as each begins; `progress` hears
        (done, total) bytes.
        """
        from adapters.registry.registering import register

        return register(
            self.layout,
            self._writer,
            self._intake,
            parse_source(source),
            name=name,
            base=base,
            tag=tag,
            format=format,
            alpha=alpha,
            serving=serving,
            dry_run=dry_run,
            policy=policy_from_environment(allow_private=allow_private_urls),
            approximate=approximate,
            actor=actor,
            on_step=on_step,
            progress=progress,
        )

    @audited("compose", "name")
    def compose(
        self,
        parts: Sequence[Part],
        recipe: Recipe,
        *,
        name: str | None,
        tag: str | None = None,
        dry_run: bool = False,
        actor: str = "local",
        on_step: OnStep | None = None,
        progress: Progress | None = None,
    ) -> Registered:
        """Makes versions of one base into a new version of `name` (None: named by the parts).

        `progress` hears (done, total) modules. Raises NotHotServable for a part of the merged lane,
        BaseMismatch for parts of several bases.
        """
        from adapters.registry.composing import compose

        return compose(
            self.layout,
            self._writer,
            self._intake,
            self.snapshot(),
            parts,
            recipe,
            name=name,
            tag=tag,
            dry_run=dry_run,
            actor=actor,
            on_step=on_step,
            progress=progress,
        )

    def inspect(
        self,
        source: str,
        *,
        format: str | None = None,
        alpha: float | None = None,
        base: str | None = None,
        allow_private_urls: bool = False,
        approximate: Approximate | None = None,
        on_step: OnStep | None = None,
        progress: Progress | None = None,
    ) -> Inspection:
        """What an artifact is and whether a base (the named one, or any) would take it."""
        from adapters.registry.registering import inspect

        address = parse_source(source)
        names = [record.name for record in self.bases()] if base is None else [base]
        bases = [(name, self.base_descriptor(name)) for name in names]
        return inspect(
            self.layout,
            self._intake,
            address,
            bases=bases,
            format=format,
            alpha=alpha,
            policy=policy_from_environment(allow_private=allow_private_urls),
            approximate=approximate,
            on_step=on_step,
            progress=progress,
        )

    def adapters(self, wanted: AdapterFilter = EVERYTHING) -> list[AdapterRecord]:
        """The adapters that match, by name."""
        with reader.reading(self.layout.root) as connection:
            names = None if wanted == EVERYTHING else matching_names(connection, wanted)
            return list(reader.load_adapters(connection, names).values())

    def adapter(self, name: str) -> AdapterRecord:
        """One adapter; raises AdapterNotFound."""
        with reader.reading(self.layout.root) as connection:
            found = reader.load_adapters(connection, [name])
        if name not in found:
            raise no_adapter(name)
        return found[name]

    def show(self, ref: str) -> VersionRecord:
        """The version that a reference means; raises NotFound errors."""
        parsed = parse_reference(ref)
        return select_version(self.adapter(parsed.name), parsed)

    def version_manifest(self, ref: str) -> Manifest:
        """Where the version came from and what it is."""
        version = self.show(ref)
        with reader.reading(self.layout.root) as connection:
            return reader.load_manifest(connection, version.adapter, version.number)

    def serving(self, ref: str) -> Serving:
        """What the version brings to its requests; raises StoreDamaged if its files are."""
        from adapters.serving.stored import read_serving

        return read_serving(self.layout, self.show(ref).digest)

    @audited("rm", "ref")
    def rm(self, ref: str, *, force: bool = False, actor: str = "local") -> list[str]:
        """Removes an adapter (NAME) or a version; returns what was removed.

        Raises InUse while tags or live engines use it, unless forced. The files go with `gc`.
        """
        from adapters.registry.versions import remove
        from adapters.store.leases import held_digests

        parsed = parse_reference(ref)
        held = held_digests(self.layout)
        with self._writer().transaction() as connection:
            return remove(connection, parsed, force=force, held=held, actor=actor)

    # --- tags --------------------------------------------------------------------------------

    def history(self, name: str) -> list[TagChange]:
        """Every move of an adapter's tags, the oldest first; survives its removal."""
        check_name(name)
        with reader.reading(self.layout.root) as connection:
            changes = reader.load_history(connection, name)
        if not changes:
            self.adapter(name)
        return changes

    @audited("tag", "ref")
    def tag(
        self, ref: str, version: str | None, *, actor: str = "local", default: bool = False
    ) -> TagChange:
        """Points NAME:TAG at a version (`v3`, a digest or another tag).

        `default` makes it what the bare NAME means; then `version` None leaves it where it is.
        """
        from adapters.registry.rows import require_adapter, select_version
        from adapters.registry.tags import TAG, move_tag, set_default_tag

        name, tag = _name_and_tag(ref)
        if version is None and not default:
            raise UsageError(f"to which version should '{ref}' point? Give v3, a digest or a tag")
        target = Reference(name, tag=tag) if version is None else _selector(name, version)
        with self._writer().transaction() as connection:
            adapter = require_adapter(connection, name)
            row = select_version(connection, adapter, target)
            change = move_tag(connection, adapter, tag, row, actor=actor, reason=TAG)
            if default:
                made = set_default_tag(connection, adapter, tag, actor=actor)
                change = made if made is not None and change.old == change.new else change
        return change

    @audited("tag.rm", "ref")
    def delete_tag(self, ref: str, *, actor: str = "local") -> TagChange:
        """Removes NAME:TAG. The default tag and `latest` stay: raises Conflict for them."""
        from adapters.registry.rows import require_adapter
        from adapters.registry.tags import DELETE, LATEST, drop_tag

        name, tag = _name_and_tag(ref)
        with self._writer().transaction() as connection:
            adapter = require_adapter(connection, name)
            if tag in (LATEST, adapter.default_tag):
                raise Conflict(
                    f"'{ref}' cannot be deleted: "
                    + (
                        "every adapter has its latest version"
                        if tag == LATEST
                        else f"it is what '{name}' means; make another tag the default first"
                    )
                )
            return drop_tag(connection, adapter, tag, actor=actor, reason=DELETE)

    @audited("rollback", "ref")
    def rollback(self, ref: str, *, actor: str = "local") -> TagChange:
        """Puts NAME:TAG back to its previous value; repeated, further back."""
        from adapters.registry.rows import require_adapter
        from adapters.registry.tags import roll_back

        name, tag = _name_and_tag(ref)
        with self._writer().transaction() as connection:
            return roll_back(connection, require_adapter(connection, name), tag, actor=actor)

    # --- the store itself --------------------------------------------------------------------

    @audited("gc", lambda _: "store")
    def gc(self, *, dry_run: bool = False, audit_older_than: datetime | None = None) -> GcReport:
        """Removes blobs that no version names and no live engine holds, and dead work.

        And the audit log's rows from before `audit_older_than`, which has a time zone.
        """
        from adapters.registry.upkeep import note_gc, trim_changes
        from adapters.store.gc import collect

        report = collect(self.layout, self._listed, self._job_ids, dry_run=dry_run)
        if dry_run:
            return report
        with self._writer().transaction() as connection:
            trim_changes(connection, keep=_CHANGES_KEPT)
            note_gc(connection, report)
        if audit_older_than is None:
            return report
        return replace(report, audit_rows=self.prune_audit(audit_older_than))

    def verify(self, progress: Progress | None = None) -> VerifyReport:
        """Hashes every blob again, and checks the registry and the bases' directories."""
        from adapters.registry.verifying import verify

        return verify(self.layout, self._intake, self._listed, progress)

    def snapshot(self) -> Snapshot:
        """The registry as it is now, for resolving references."""
        with registry_errors(self.layout.root):
            connection = reader.connect(self.layout.database)
            try:
                return load_snapshot(connection)
            finally:
                connection.close()

    # --- inside ------------------------------------------------------------------------------

    def _writer(self) -> RegistryWriter:
        # SQLAlchemy costs half a second to import: `adapterctl ls` must not pay for it.
        if self._registry is None:
            from adapters.registry.writer import RegistryWriter

            self._registry = RegistryWriter(self.layout.root)
        return self._registry

    def _listed(self) -> dict[str, list[str]]:
        """digest -> the versions that have it."""
        with reader.reading(self.layout.root) as connection:
            return reader.load_digests(connection)


def _name_and_tag(ref: str) -> tuple[str, str]:
    parsed = parse_reference(ref)
    if parsed.tag is None:
        raise InvalidReference(f"'{ref}' names no tag: write NAME:TAG, for example bot:prod")
    return parsed.name, parsed.tag


def _selector(name: str, version: str) -> Reference:
    """`v3`, a digest or a tag, as a reference of adapter `name`."""
    return parse_reference(f"{name}{'@' if version.startswith('sha256:') else ':'}{version}")
