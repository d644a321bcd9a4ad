"""What an archive's members may be called and how much they may hold; writes them.

The one guard of every archive format: a reader names a member and hands over its bytes, and
everything is judged here, on the bytes that really come and not on what a header says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from adapters.errors import DamagedArtifact, SourceRefused
from adapters.sources.policy import Policy

_MAX_PATH = 1024
_MAX_PART = 255
_MAX_DEPTH = 32


def member_parts(archive: str, name: str) -> tuple[str, ...]:
    """The safe parts of a member's path, () for the archive's own root; raises SourceRefused."""
    if problem := _name_problem(name):
        raise refused(archive, name, problem)
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _name_problem(name: str) -> str | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not name:
        return "has no name"
    if not name.isprintable() or "\\" in name:
        return "has control characters or backslashes in its name"
    if name.startswith("/") or (parts and len(parts[0]) == 2 and parts[0][1] == ":"):
        return "has an absolute path"
    if ".." in parts:
        return "leads out of its directory by '..'"
    encoded = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    if max(encoded, default=0) > _MAX_PART or sum(encoded) > _MAX_PATH or len(parts) > _MAX_DEPTH:
        return "has a path that is too long"
    return None


def refused(archive: str, name: str, problem: str) -> SourceRefused:
    """The refusal of one member, by its name."""
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return SourceRefused(f"{archive} is refused: its member {shown!a} {problem}")


class Unpacking:
    """Writes members below `target`, a fresh directory, and counts."""

    def __init__(self, archive: str, target: Path, policy: Policy):
        self._archive = archive
        self._target = target
        self._policy = policy
        self._members = 0
        self._total = 0
        self._files: set[tuple[str, ...]] = set()
        self._directories: set[tuple[str, ...]] = {()}

    def directory(self, name: str) -> None:
        """Makes a directory; the same one twice is harmless."""
        parts = self._admit(name)
        self._make(name, parts)

    def file(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """Writes one file; raises DamagedArtifact unless exactly `size` bytes come."""
        parts = self._admit(name)
        if not parts:
            raise refused(self._archive, name, "is the archive's root, yet no directory")
        if parts in self._files or parts in self._directories:
            raise refused(self._archive, name, "is there twice")
        self._make(name, parts[:-1])
        self._files.add(parts)
        done = 0
        with create_file(self._target.joinpath(*parts)) as file:
            for chunk in chunks:
                done += len(chunk)
                self._grow(name, len(chunk))
                file.write(chunk)
        if done != size:
            raise DamagedArtifact(
                f"{self._archive} is damaged: its member {name!a} should have {size} bytes "
                f"and has {done}"
            )

    def _admit(self, name: str) -> tuple[str, ...]:
        self._members += 1
        if self._members > self._policy.max_members:
            raise refused(
                self._archive,
                name,
                f"is one more than the {self._policy.max_members} that an archive may have",
            )
        return member_parts(self._archive, name)

    def _grow(self, name: str, count: int) -> None:
        self._total += count
        if self._total > self._policy.max_bytes:
            raise refused(
                self._archive,
                name,
                f"takes it over the limit of {self._policy.max_bytes} bytes unpacked "
                "(ADAPTERCTL_MAX_SOURCE_BYTES)",
            )

    def _make(self, name: str, parts: tuple[str, ...]) -> None:
        for end in range(1, len(parts) + 1):
            part = parts[:end]
            if part in self._files:
                raise refused(self._archive, name, f"lies in the file {'/'.join(part)!a}")
            if part not in self._directories:
                self._target.joinpath(*part).mkdir()
                self._directories.add(part)


def create_file(path: Path) -> BinaryIO:
    """A new file, for writing."""
    # Exclusive and never through a link: nothing that was there before is written to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o644), "wb")
