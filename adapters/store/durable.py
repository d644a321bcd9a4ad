"""Writes that survive a power cut, and what the file system's errors mean for a store."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import AdapterctlError, DiskFull, StoreDamaged, StoreError, StoreReadOnly

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def store_io(root: Path) -> Iterator[None]:
    """Turns an OSError raised inside into the StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        raise store_error(root, error) from error


def store_error(root: Path, error: OSError) -> StoreError:
    """The StoreError for an operating system's error met while working on the store at `root`."""
    if error.errno in _FULL:
        return DiskFull(
            f"no space left for the store at {root}: free some space there "
            "(`adapterctl gc` removes what nothing uses) and try again"
        )
    if error.errno in _READ_ONLY:
        return StoreReadOnly(
            f"the store at {root} cannot be written ({error.strerror}): "
            "check its owner, its permissions and how its file system is mounted"
        )
    if error.errno == errno.EIO:
        return StoreDamaged(f"the disk under the store at {root} reports an input/output error")
    return StoreError(f"the store at {root} failed: {error}")


@contextmanager
def full_disk(root: Path) -> Iterator[None]:
    """Turns any exception that tells of a full disk into DiskFull, whatever library raised it.

    For tensor libraries that write into the staging directory: safetensors reports a full disk
    as an error of its own, with the system's words in it.
    """
    try:
        yield
    except AdapterctlError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise store_error(root, error) from error
        for number in _FULL:
            if os.strerror(number) in str(error):
                raise store_error(root, OSError(number, os.strerror(number))) from error
        raise


def fsync_file(path: Path) -> None:
    """Forces a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Forces a directory's entries (names created, renamed, removed) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Puts `data` at `path`: whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
