"""An artifact of this machine as one stream of bytes, for a server that does not share its disk.

A directory becomes a tar archive of the files that can belong to an adapter: always the same bytes
for the same files (sorted, no times, no owners), of a length that is known before the first byte.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.errors import SourceRefused, SourceUnreadable
from adapters.sources.adapter_files import is_wanted, judge_listing
from adapters.sources.archives import tame_name
from adapters.sources.policy import Policy

_CHUNK = 1 << 20
_BLOCK = 512
_CIRCLE = "its links lead in a circle"


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    file: Path
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """`name` says what the bytes are, as a file's name does; `size` is how many there are."""

    name: str
    size: int
    single: bool
    _members: tuple[_Member, ...]

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces; raises SourceUnreadable when a file changes meanwhile."""
        for member in self._members:
            if not self.single:
                yield _header(member)
            yield from _content(member)
            if not self.single:
                yield bytes(-member.size % _BLOCK)
        if not self.single:
            yield bytes(2 * _BLOCK)


def pack(source: Path, policy: Policy) -> Packed:
    """What is to be sent of the directory or file `source`; nothing but headers is read yet.

    Raises SourceUnreadable for what is not there or holds nothing of an adapter, SourceRefused for
    a link that leads out of the directory, and for more than the policy allows.
    """
    try:
        root = source.resolve(strict=True)
        found = root.stat()
    except (OSError, RuntimeError) as fault:
        raise _unreadable(source, fault) from None
    if stat.S_ISREG(found.st_mode):
        # The name that was given, not the one that a link (a hub's cache) leads to.
        member = _Member(source.name, root, found.st_size)
        judge_listing(str(source), {tame_name(source.name): found.st_size}, policy)
        return Packed(tame_name(source.name), found.st_size, True, (member,))
    if not stat.S_ISDIR(found.st_mode):
        raise SourceUnreadable(f"{source} is neither a directory nor a plain file")
    members = _members(source, root)
    judge_listing(str(source), {member.name: member.size for member in members}, policy)
    size = sum(len(_header(m)) + m.size + -m.size % _BLOCK for m in members) + 2 * _BLOCK
    return Packed(f"{tame_name(root.name)}.tar", size, False, members)


def _members(source: Path, root: Path) -> tuple[_Member, ...]:
    found: list[_Member] = []
    try:
        for place, directories, names in os.walk(root, onerror=_raise):
            directories[:] = [name for name in directories if not name.startswith(".")]
            below = Path(place).relative_to(root)
            for name in names:
                relative = (below / name).as_posix()
                if not name.startswith(".") and is_wanted(relative):
                    found.append(_member(source, root, relative))
    except OSError as fault:
        raise _unreadable(source, fault) from None
    if not found:
        raise SourceUnreadable(
            f"{source} has no file that could belong to an adapter: give the directory that the "
            "trainer saved it to (of a run's checkpoints, one)"
        )
    return tuple(sorted(found, key=lambda member: member.name))


def _member(source: Path, root: Path, relative: str) -> _Member:
    file = root / relative
    try:
        real = file.resolve(strict=True)
        found = real.stat()
    except (OSError, RuntimeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else None
        raise SourceUnreadable(f"cannot read {file}: {why or _CIRCLE}") from None
    if not real.is_relative_to(root):
        raise SourceRefused(
            f"{source} is not sent: its {relative!a} is a link that leads out of it; make a copy "
            "with the files themselves (cp -rL) and give that"
        )
    if not stat.S_ISREG(found.st_mode):
        raise SourceRefused(f"{source} is not sent: its {relative!a} is no plain file")
    return _Member(relative, real, found.st_size)


def _header(member: _Member) -> bytes:
    info = tarfile.TarInfo(member.name)
    info.size = member.size
    info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(member: _Member) -> Iterator[bytes]:
    left = member.size
    try:
        with _open(member.file) as file:
            while chunk := file.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                yield chunk
    except OSError as fault:
        raise _unreadable(member.file, fault) from None
    if left:
        raise SourceUnreadable(f"{member.file} changed while it was sent: run it again")


def _open(file: Path) -> BinaryIO:
    # Resolved before: what is a link or a pipe by now was put there since.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(file, flags), "rb")


def _raise(fault: OSError) -> None:
    raise fault


def _unreadable(source: Path, fault: Exception) -> SourceUnreadable:
    if isinstance(fault, FileNotFoundError):
        return SourceUnreadable(f"{source} does not exist; give the adapter's directory")
    why = fault.strerror if isinstance(fault, OSError) else None
    return SourceUnreadable(f"cannot read {source}: {why or _CIRCLE}")
