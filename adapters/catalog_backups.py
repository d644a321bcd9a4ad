"""The part of the catalog about backups and about adapters on their way to another store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapters.audit import audited
from adapters.catalog_audit import AuditCatalog
from adapters.registry.intake_port import IntakeProtocol, OnStep, Progress
from adapters.store.layout import StoreLayout

if TYPE_CHECKING:
    from adapters.backups.documents import BackupReport, Exported, Imported
    from adapters.registry.writer import RegistryWriter


class BackupCatalog(AuditCatalog):
    """What leaves one store for another; `Catalog` is one of these."""

    layout: StoreLayout
    _intake: IntakeProtocol

    def _writer(self) -> RegistryWriter:
        raise NotImplementedError

    @audited("backup", lambda given: str(given["target"]))
    def backup(
        self, target: Path, *, link: bool = False, progress: Progress | None = None
    ) -> BackupReport:
        """Copies the store, while it is used, to a directory or an archive (`.tar.zst`, `.tar`).

        An earlier backup in the directory is brought up to date. See `backups.making.back_up`.
        """
        from adapters.backups.making import back_up

        return back_up(self.layout, target, link=link, progress=progress)

    @audited("export", "ref")
    def export(self, ref: str, target: Path, *, progress: Progress | None = None) -> Exported:
        """Writes an adapter with its history (NAME) or one version to an archive."""
        from adapters.backups.exporting import export_adapter

        return export_adapter(self.layout, ref, target, progress=progress)

    @audited("import", lambda given: given["name"] or str(given["source"]))
    def import_(
        self,
        source: Path,
        *,
        name: str | None = None,
        dry_run: bool = False,
        actor: str = "local",
        on_step: OnStep | None = None,
        progress: Progress | None = None,
    ) -> Imported:
        """Takes an exported adapter in; see `backups.importing.import_adapter`."""
        from adapters.backups.importing import import_adapter

        return import_adapter(
            self.layout,
            self._writer,
            self._intake,
            source,
            name=name,
            dry_run=dry_run,
            actor=actor,
            on_step=on_step,
            progress=progress,
        )
