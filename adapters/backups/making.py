"""Backing a store up while it is used.

1. The registry is copied by SQLite's own online backup, in one read transaction: as it is at one
   moment, and no writer waits for it. From then on a lease keeps gc from what it names.
2. The content of every version is copied, unless the backup has it: it never changes. Each copy is
   hashed.
3. The registry takes its place, by one rename, after all that it names: a backup that was cut short
   is the one before, with some more content.
4. What no version names any more is removed from a directory.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import adapters
from adapters.backups.documents import BACKUP_FILE, BackupDocument, BackupReport
from adapters.backups.guarding import gc_kept_waiting, lease_for_copying
from adapters.backups.trees import DirectoryTree, Tree, is_archive, new_archive, place_errors
from adapters.errors import StoreDamaged, UsageError
from adapters.registry import reader
from adapters.registry.faults import registry_errors
from adapters.registry.intake_port import Progress
from adapters.store.content import blob_complete, blob_problem, file_digest
from adapters.store.durable import fsync_directory, fsync_file
from adapters.store.layout import StoreLayout, digest_hex

_REGISTRY = "registry.db"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a registry names: digest -> the versions that have it, and how many bytes those are."""

    names: dict[str, list[str]]
    sizes: dict[str, int]

    @property
    def versions(self) -> int:
        """How many."""
        return sum(map(len, self.names.values()))


def back_up(
    layout: StoreLayout, target: Path, *, link: bool = False, progress: Progress | None = None
) -> BackupReport:
    """Copies the store to the directory or archive (`.tar`, `.tar.zst`) `target`.

    A directory may hold an earlier backup, which is brought up to date. With `link` its content is
    linked, not copied, where the file system can. `progress` hears (done, total) bytes. Raises
    StoreErrors of the store, UsageError for a target that cannot be one, DiskFull.
    """
    target = target.absolute()
    _check_target(layout, target, link)
    with lease_for_copying(layout) as hold, place_errors(target), _beside(target) as work:
        registry = work / _REGISTRY
        # No gc between the copy of the registry and the lease on what it names.
        with gc_kept_waiting(layout):
            _copy_registry(layout, registry)
            contents = read_contents(registry)
            hold(contents.names.keys())
        copying = _Copying(layout, contents, progress or (lambda done, total: None))
        if is_archive(target):
            return _to_archive(copying, registry, target)
        return _to_directory(copying, registry, target, link=link)


def read_contents(registry: Path) -> Contents:
    """What the registry at that path names; raises StoreDamaged."""
    with registry_errors(registry.parent), closing(reader.connect(registry)) as connection:
        if problems := reader.integrity_problems(connection):
            raise StoreDamaged(
                f"{problems[0]}: run `adapterctl verify`, and see docs/store.md for what to do"
            )
        sizes = {
            str(digest): int(size)
            for digest, size in connection.execute("SELECT digest, size_bytes FROM versions")
        }
        return Contents(reader.load_digests(connection), sizes)


class _Copying:
    """Goes through the versions' content, and notes what of it is damaged."""

    def __init__(self, layout: StoreLayout, contents: Contents, progress: Progress):
        self.layout = layout
        self.contents = contents
        self.copied = 0
        self.problems: list[str] = []
        self._progress = progress
        self._done = 0
        self._total = sum(contents.sizes.values())

    def each(self, copy: Callable[[str, Path], str | None], there: Callable[[str], bool]) -> None:
        """`copy` every blob that is not `there`; it returns what is wrong with one."""
        self._progress(0, self._total)
        for digest in sorted(self.contents.names):
            if not there(digest):
                problem = copy(digest, self.layout.blob(digest))
                if problem is None:
                    self.copied += 1
                else:
                    names = ", ".join(self.contents.names[digest])
                    self.problems.append(
                        f"{names} ({digest}): {problem}; register the same source again"
                    )
            self._done += self.contents.sizes[digest]
            self._progress(self._done, self._total)

    def reports(self) -> Iterator[tuple[str, Path]]:
        """The files of the quality reports: their names in a backup, and where they are."""
        for digest in self.layout.reported_digests():
            if digest in self.contents.names:
                for file in sorted(self.layout.report(digest).iterdir()):
                    if file.is_file():
                        yield f"reports/{digest_hex(digest)}/{file.name}", file

    def document(self, registries: tuple[str, ...]) -> bytes:
        """backup.json."""
        document = BackupDocument(
            adapterctl=adapters.__version__,
            created_at=datetime.now(UTC),
            store=str(self.layout.root.absolute()),
            registries=registries,
            blobs=len(self.contents.names),
            bytes=self._total,
        )
        return (document.model_dump_json(indent=2) + "\n").encode()

    def report(self, target: Path, dropped: int) -> BackupReport:
        """What came of it."""
        return BackupReport(
            path=str(target),
            versions=self.contents.versions,
            blobs=len(self.contents.names) - len(self.problems),
            copied=self.copied,
            dropped=dropped,
            bytes=self._total,
            problems=tuple(self.problems),
        )


def _to_archive(copying: _Copying, registry: Path, target: Path) -> BackupReport:
    def copy(digest: str, blob: Path) -> str | None:
        # Hashed before it is packed: an archive cannot take back what was written to it.
        problem = blob_problem(blob, digest)
        if problem is None:
            add_blob(tree, digest, blob)
        return problem

    with new_archive(target) as tree:
        tree.write(BACKUP_FILE, copying.document((file_digest(registry),)))
        tree.add(_REGISTRY, registry)
        copying.each(copy, lambda digest: False)
        for name, file in copying.reports():
            tree.add(name, file)
    return copying.report(target, dropped=0)


def _to_directory(copying: _Copying, registry: Path, target: Path, *, link: bool) -> BackupReport:
    backup, tree = StoreLayout(target), DirectoryTree(target)

    def copy(digest: str, blob: Path) -> str | None:
        return copy_blob(blob, backup.blob(digest), digest, link=link)

    copying.each(copy, lambda digest: blob_complete(backup.blob(digest)))
    for name, file in copying.reports():
        tree.add(name, file)
    new = file_digest(registry)
    with suppress(FileNotFoundError):
        tree.write(BACKUP_FILE, copying.document((new, file_digest(backup.database))))
    fsync_file(registry)
    registry.replace(backup.database)
    fsync_directory(target)
    tree.write(BACKUP_FILE, copying.document((new,)))
    return copying.report(target, _drop(backup, copying.contents))


def add_blob(tree: Tree, digest: str, blob: Path) -> None:
    """The files of a blob, under its place in a store."""
    for file in sorted(blob.iterdir()):
        tree.add(f"blobs/sha256/{digest_hex(digest)[:2]}/{digest_hex(digest)}/{file.name}", file)


def copy_blob(blob: Path, place: Path, digest: str, *, link: bool = False) -> str | None:
    """Copies a blob's directory to `place`, all of it or nothing, and hashes the copy.

    None if it is there and intact, else what is wrong. Raises OSError.
    """
    if not blob.is_dir():
        return "it is missing"
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".copying-", dir=place.parent) as made:
        copy = Path(made) / place.name
        copy.mkdir()
        for file in sorted(blob.iterdir()):
            _copy_file(file, copy / file.name, link=link)
        problem = blob_problem(copy, digest)
        if problem is not None:
            return problem
        for file in copy.iterdir():
            fsync_file(file)
        fsync_directory(copy)
        if place.exists():
            # Not what its name says, or it would not be copied again.
            place.rename(Path(made) / "damaged")
        copy.rename(place)
    fsync_directory(place.parent)
    return None


def _copy_file(file: Path, copy: Path, *, link: bool) -> None:
    if link:
        with suppress(OSError):
            copy.hardlink_to(file)
            return
    shutil.copyfile(file, copy)
    copy.chmod(0o444)


def _drop(backup: StoreLayout, contents: Contents) -> int:
    """Removes what the registry of the backup does not name; returns how many versions' content."""
    # What was being copied or removed when an earlier backup was cut short.
    for left in backup.blobs.glob("*/.*"):
        shutil.rmtree(left)
    gone = [digest for digest in backup.stored_digests() if digest not in contents.names]
    for digest in gone:
        # Out of its place first: half a directory there would be taken for damage.
        blob = backup.blob(digest)
        doomed = blob.rename(blob.with_name(f".dropped-{blob.name}"))
        shutil.rmtree(doomed)
    for digest in backup.reported_digests():
        if digest not in contents.names:
            shutil.rmtree(backup.report(digest))
    return len(gone)


def _copy_registry(layout: StoreLayout, copy: Path) -> None:
    with (
        registry_errors(layout.root),
        closing(reader.connect(layout.database)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        # One file that needs no other beside it.
        target.execute("PRAGMA journal_mode = DELETE")
    copy.chmod(0o600)


def _check_target(layout: StoreLayout, target: Path, link: bool) -> None:
    root = layout.root.resolve()
    if target.resolve().is_relative_to(root):
        raise UsageError(f"{target} lies in the store itself: a backup belongs somewhere else")
    if is_archive(target):
        if link:
            raise UsageError("an archive has copies of everything: --link is for a directory")
        if target.is_dir():
            raise UsageError(f"{target} is a directory: give the name of a file")
        return
    if target.is_file():
        raise UsageError(f"{target} is a file: give a directory, or a name that ends in .tar.zst")
    foreign = target.is_dir() and any(target.iterdir()) and not (target / BACKUP_FILE).exists()
    if foreign and not _began(target):
        raise UsageError(
            f"{target} holds something that is no backup: give an empty directory, a new one or "
            "one with an earlier backup"
        )


def _began(target: Path) -> bool:
    """Whether a first backup was cut short there: content and nothing else."""
    return all(entry.name in {"blobs", "reports", _REGISTRY} or entry.name.startswith(".backup-")
               for entry in target.iterdir())  # fmt: skip


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A directory to work in on the target's file system, where there is to be room."""
    parent = target.parent
    if not is_archive(target):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = target
    elif not parent.is_dir():
        raise UsageError(f"{parent} is no directory: make it first")
    for left in parent.glob(".backup-*") if parent == target else ():
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=parent) as made:
        yield Path(made)
