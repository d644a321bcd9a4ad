"""Making a store of a backup, or only looking whether that could be done.

Everything is hashed on its way. The registry comes after all that it names and the store's marker
last, so what was cut short is no store, and the same command goes on from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from adapters.backups.documents import (
    BACKUP_FILE,
    BackupDocument,
    RestoreReport,
    read_document,
)
from adapters.backups.making import Contents, copy_blob, read_contents
from adapters.backups.reading import of_ones_own, opened
from adapters.backups.trees import DirectoryTree
from adapters.errors import AlreadyExists, StoreDamaged
from adapters.registry import reader
from adapters.registry.faults import registry_errors
from adapters.registry.intake_port import Progress
from adapters.registry.opening import check_store, finish_store, refuse_foreign
from adapters.sources.policy import policy_from_environment
from adapters.store.content import blob_problem, file_digest
from adapters.store.durable import full_disk, store_io
from adapters.store.layout import StoreLayout, digest_hex
from adapters.store.publish import stage


@dataclass(frozen=True, slots=True)
class _Opened:
    """A backup whose registry is sound."""

    layout: StoreLayout
    document: BackupDocument
    contents: Contents


def check(source: Path, *, progress: Progress | None = None) -> RestoreReport:
    """Reads and hashes a whole backup, and writes nothing but an archive's content for a while.

    What is wrong with single versions is in `problems`; raises as `restore` where the backup as a
    whole cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="adapterctl-backup-") as place:
        backup = _open(source, Path(place))

        def hashed(digest: str) -> str | None:
            return blob_problem(backup.layout.blob(digest), digest)

        problems = _each(backup, hashed, progress)
        return _report(backup, backup.layout, problems, checked_only=True)


def restore(
    source: Path, layout: StoreLayout, *, partial: bool = False, progress: Progress | None = None
) -> RestoreReport:
    """Makes the store `layout` of the backup `source`, a directory or an archive.

    Raises AlreadyExists where there is a store or something else, SourceUnreadable for what is no
    backup, StoreTooNew for one of a newer adapterctl, StoreDamaged for a damaged one; with
    `partial` one that lacks the content of some versions is restored without it.
    """
    if layout.marker.exists():
        raise AlreadyExists(
            f"there is a store at {layout.root} already: restore into an empty directory"
        )
    refuse_foreign(layout)
    with store_io(layout.root), full_disk(layout.root), ExitStack() as stack:
        for directory in layout.directories():
            directory.mkdir(parents=True, exist_ok=True)
        staging = stack.enter_context(stage(layout))
        backup = _open(source, staging.root)

        def copied(digest: str) -> str | None:
            place = layout.blob(digest)
            if blob_problem(place, digest) is None:
                return None
            return copy_blob(backup.layout.blob(digest), place, digest)

        problems = _each(backup, copied, progress)
        if problems and not partial:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise StoreDamaged(
                f"the backup {source} is damaged: {problems[0]}{more}; --partial restores all that "
                "is intact"
            )
        tree = DirectoryTree(layout.root)
        for digest in backup.contents.names:
            for file in _report_files(backup.layout, digest):
                tree.add(f"reports/{digest_hex(digest)}/{file.name}", file)
        tree.add(layout.database.name, backup.layout.database)
        finish_store(layout)
    check_store(layout)
    return _report(backup, layout, problems, checked_only=False)


def _open(source: Path, place: Path) -> _Opened:
    directory = opened(source, place, of_ones_own(policy_from_environment()))
    document = read_document(directory, BACKUP_FILE, BackupDocument, str(source))
    layout = StoreLayout(directory)
    try:
        digest = file_digest(layout.database)
    except OSError as error:
        raise StoreDamaged(f"registry.db of {source} cannot be read: {error.strerror}") from None
    if digest not in document.registries:
        raise StoreDamaged(
            f"registry.db of {source} has changed since the backup was made: take another backup"
        )
    with registry_errors(directory), closing(reader.connect(layout.database)) as connection:
        # Before any work: what a newer adapterctl made cannot be opened afterwards.
        reader.needs_migration(directory, connection)
    return _Opened(layout, document, read_contents(layout.database))


def _each(
    backup: _Opened, handle: Callable[[str], str | None], progress: Progress | None
) -> list[str]:
    tell = progress or (lambda done, total: None)
    total, done = sum(backup.contents.sizes.values()), 0
    problems: list[str] = []
    for digest, names in sorted(backup.contents.names.items()):
        tell(done, total)
        problem = handle(digest)
        if problem is not None:
            problems.append(f"{', '.join(names)} ({digest}): {problem}")
        done += backup.contents.sizes[digest]
    tell(total, total)
    return problems


def _report_files(layout: StoreLayout, digest: str) -> list[Path]:
    directory = layout.report(digest)
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _report(
    backup: _Opened, registry: StoreLayout, problems: list[str], *, checked_only: bool
) -> RestoreReport:
    with registry_errors(registry.root), closing(reader.connect(registry.database)) as connection:
        bases = reader.load_bases(connection)
        (adapters,) = connection.execute("SELECT count(*) FROM adapters").fetchone()
    missing = [f"{one.name} ({one.path})" for one in bases.values() if not Path(one.path).is_dir()]
    return RestoreReport(
        store=str(registry.root),
        created_at=backup.document.created_at,
        adapters=adapters,
        versions=backup.contents.versions,
        blobs=len(backup.contents.names) - len(problems),
        bytes=sum(backup.contents.sizes.values()),
        bases_missing=tuple(missing),
        problems=tuple(problems),
        checked_only=checked_only,
    )
