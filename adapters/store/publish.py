"""How a version's content gets into the store: all of it or nothing, whatever happens.

1. stage     a directory of its own under staging/, with a lock file held by this process
2. write     intake writes the canonical files into it
3. seal      every file is hashed, content.json is written, everything is fsynced
4. publish   one rename to blobs/sha256/…, then fsync of the parent
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import StoreBusy, StoreError
from adapters.store.content import CONTENT_FILE, Content, blob_problem, file_digest
from adapters.store.durable import fsync_directory, fsync_file, store_io
from adapters.store.layout import StoreLayout
from adapters.store.locks import open_lock_file, store_lock, try_flock, wait_flock

_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}
_REPLACE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Staging:
    """A place to work in: `files` becomes the blob; `root` vanishes when the work is over."""

    root: Path
    files: Path


@dataclass(frozen=True, slots=True)
class Sealed:
    """Staged content, hashed and on the disk. `size_bytes` counts all files but content.json."""

    digest: str
    files: Path
    size_bytes: int


@contextmanager
def stage(layout: StoreLayout) -> Iterator[Staging]:
    """A staging directory, removed afterwards whatever happened; gc removes it if we die."""
    root = layout.staging / f"{os.getpid()}-{secrets.token_hex(8)}"
    # gc takes a directory without a held lock for dead. It cannot look between the making of the
    # directory and of its lock, since it needs the store's lock exclusively.
    with store_lock(layout, shared=True), store_io(layout.root):
        root.mkdir()
        descriptor = open_lock_file(root / "lock")
        taken = try_flock(descriptor, shared=False)
        assert taken, "a fresh staging directory was locked by somebody else"
    try:
        files = root / "files"
        with store_io(layout.root):
            files.mkdir()
        yield Staging(root, files)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        os.close(descriptor)


def staging_lives(directory: Path) -> bool:
    """Whether a process still works in this staging directory. Raises OSError."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return not try_flock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def seal(layout: StoreLayout, staging: Staging, *, base_digest: str) -> Sealed:
    """Hashes what is staged, writes content.json and forces all of it to the disk."""
    with store_io(layout.root):
        names = sorted(entry.name for entry in staging.files.iterdir())
        digests: dict[str, str] = {}
        size = 0
        for name in names:
            path = staging.files / name
            if name == CONTENT_FILE or path.is_symlink() or not path.is_file():
                raise StoreError(f"'{name}' cannot be stored: a version holds plain files only")
            # Hashed from the file system, not from memory: what is named is what lies there.
            digests[name] = file_digest(path)
            size += path.stat().st_size
            # A version never changes; the mode keeps a stray editor from trying.
            path.chmod(0o444)
            fsync_file(path)
        if not digests:
            raise StoreError("nothing was staged: a version holds at least one file")
        content = Content(base=base_digest, files=digests)
        description = staging.files / CONTENT_FILE
        description.write_bytes(content.encode())
        description.chmod(0o444)
        fsync_file(description)
        fsync_directory(staging.files)
    return Sealed(content.digest, staging.files, size)


def publish(layout: StoreLayout, staging: Staging, sealed: Sealed) -> bool:
    """Moves sealed content to its place; False if the same content lay there intact already.

    The caller holds the store's lock (shared) until the registry names the digest; otherwise gc
    could take the new blob for an orphan. A damaged blob in the place is replaced.
    """
    target = layout.blob(sealed.digest)
    with store_io(layout.root):
        if not target.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            fsync_directory(layout.blobs)
        if _move(sealed.files, target):
            return True
        if blob_problem(target, sealed.digest) is None:
            return False
        return _replace_damaged(layout, staging, sealed, target)


def _move(files: Path, target: Path) -> bool:
    """Renames into place and makes that durable; False if something lies there."""
    try:
        files.replace(target)
    except NotADirectoryError:
        return False
    except OSError as error:
        if error.errno in _NOT_EMPTY:
            return False
        raise
    fsync_directory(target.parent)
    return True


def _replace_damaged(layout: StoreLayout, staging: Staging, sealed: Sealed, target: Path) -> bool:
    # One at a time, and look again: else two repairers could move each other's good copy away.
    descriptor = open_lock_file(layout.repair_lock)
    try:
        if not wait_flock(descriptor, shared=False, timeout=_REPLACE_TIMEOUT_S):
            raise StoreBusy(f"another process repairs the store at {layout.root}: try again")
        if blob_problem(target, sealed.digest) is None:
            return False
        target.replace(staging.root / "damaged")
        if not _move(sealed.files, target):
            raise StoreBusy(f"another process writes {sealed.digest} at the same time: try again")
        return True
    finally:
        os.close(descriptor)
