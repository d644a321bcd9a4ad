"""Where a backup's files go: a directory, or a tar archive, packed by zstd or not.

Both take the same calls: `add` copies a file, `write` makes one; names are relative, with `/`.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

from adapters.errors import DiskFull, StoreError, UsageError
from adapters.store.durable import fsync_directory, fsync_file, write_durably

TAR = ".tar"
TAR_ZSTD = ".tar.zst"
# zstd's quickest levels lose little: weights hardly compress, and the disk is what is waited for.
_LEVEL = 3


class Tree(Protocol):
    """What takes files."""

    def add(self, name: str, file: Path) -> None:
        """A copy of `file`. Raises OSError."""

    def write(self, name: str, data: bytes) -> None:
        """A file with that content. Raises OSError."""


def is_archive(path: Path) -> bool:
    """Whether the name asks for an archive rather than a directory."""
    return path.name.endswith((TAR, TAR_ZSTD))


class DirectoryTree:
    """Files in a directory; each is on the disk when the call returns."""

    def __init__(self, root: Path):
        self.root = root

    def add(self, name: str, file: Path) -> None:
        """See Tree. The copy appears as a whole."""
        target = self._place(name)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        try:
            shutil.copyfile(file, temporary)
            fsync_file(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(target.parent)

    def write(self, name: str, data: bytes) -> None:
        """See Tree."""
        write_durably(self._place(name), data)

    def _place(self, name: str) -> Path:
        target = self.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


class ArchiveTree:
    """Members of a tar archive, one after another."""

    def __init__(self, tar: tarfile.TarFile):
        self._tar = tar

    def add(self, name: str, file: Path) -> None:
        """See Tree."""
        with file.open("rb") as content:
            self._member(name, os.fstat(content.fileno()).st_size, content)

    def write(self, name: str, data: bytes) -> None:
        """See Tree."""
        self._member(name, len(data), io.BytesIO(data))

    def _member(self, name: str, size: int, content: IO[bytes]) -> None:
        # No owner, no time: the same content gives the same bytes.
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._tar.addfile(info, content)


@contextmanager
def new_archive(path: Path) -> Iterator[ArchiveTree]:
    """An archive that appears at `path` when the block ends, and not at all if it fails.

    Raises OSError; UsageError where the directory for it is missing.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory: make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        # For the owner alone: a registry has hashes of keys in it.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with ExitStack() as stack:
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
            packed = stack.enter_context(_packing(path, file))
            tar = stack.enter_context(
                tarfile.open(mode="w|", fileobj=packed, format=tarfile.PAX_FORMAT)
            )
            yield ArchiveTree(tar)
        fsync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


@contextmanager
def _packing(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    if not path.name.endswith(TAR_ZSTD):
        yield file
        return
    import zstandard

    # A checksum: what is damaged on its way is found while it is unpacked.
    packer = zstandard.ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
    with packer.stream_writer(file, closefd=False) as packed:
        yield packed


@contextmanager
def place_errors(place: Path) -> Iterator[None]:
    """What the operating system says of the place that a backup is written to, as StoreErrors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"no space left at {place}: free some there and run the same command again"
            ) from error
        raise StoreError(f"{place} cannot be written: {error.strerror or error}") from error
