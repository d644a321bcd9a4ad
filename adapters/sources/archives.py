"""Archives: which files are some, and unpacking them into a directory of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from adapters.errors import DamagedArtifact, SourceUnreadable
from adapters.sources.members import Unpacking
from adapters.sources.policy import Policy
from adapters.sources.tars import unpack_tar, unpack_tar_gz, unpack_tar_zst
from adapters.sources.zips import unpack_zip

_SUFFIX = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.zst)\Z", re.IGNORECASE)
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
# What a packer of another system adds beside the content.
_PACKERS_OWN = {"__MACOSX", ".DS_Store"}

Reader = Callable[[str, BinaryIO, Unpacking, Policy], None]
_ZSTD = b"\x28\xb5\x2f\xfd"


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is to be unpacked."""
    return _SUFFIX.search(name) is not None


def safe_name(name: str, default: str = "artifact") -> str:
    """A foreign name if it can be a file's here without surprise."""
    return name if _SAFE_NAME.fullmatch(name) else default


def tame_name(name: str) -> str:
    """A safe name as like `name` as can be: what it ends with says what the file is."""
    return safe_name(re.sub(r"[^A-Za-z0-9_.+-]", "_", name)[-100:].lstrip(".+-"))


def unpack(archive: Path, place: Path, policy: Policy) -> Path:
    """Unpacks into a new directory in `place` and returns the directory with the artifact.

    Raises SourceRefused for what a sound archive never holds, DamagedArtifact for a broken one.
    """
    # The archive's own name: intake knows directories by name that are never an adapter.
    target = place / safe_name(_SUFFIX.sub("", archive.name))
    try:
        file = archive.open("rb")
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {archive}: {fault.strerror or fault}") from None
    with file:
        start = file.read(4)
        if not start:
            raise DamagedArtifact(f"{archive.name} is empty")
        file.seek(0)
        target.mkdir()
        reader = reader_of(archive.name, start)
        reader(archive.name, file, Unpacking(archive.name, target, policy), policy)
    return _content_of(target)


def reader_of(name: str, start: bytes) -> Reader:
    """By the first four bytes before the name: many a .tar.gz is a plain tar by now."""
    if start.startswith(b"\x1f\x8b"):
        return unpack_tar_gz
    if start == _ZSTD:
        return unpack_tar_zst
    if start.startswith(b"PK") or name.lower().endswith(".zip"):
        return unpack_zip
    return unpack_tar


def _content_of(directory: Path) -> Path:
    """The directory itself, or the only one in it: most packers put everything into one."""
    while True:
        inside = [item for item in directory.iterdir() if item.name not in _PACKERS_OWN]
        if len(inside) != 1 or not inside[0].is_dir():
            return directory
        directory = inside[0]
