"""Reading tar archives, plain, gzip or zstd, in one pass and in bounded memory.

The standard library's reader takes whole extended headers into memory and gives links a meaning;
here only files and directories exist, and a header is at most a few kilobytes.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from adapters.errors import DamagedArtifact
from adapters.sources.expansion import Gunzip, Plain, Ratio, Unzstd
from adapters.sources.members import Unpacking, refused
from adapters.sources.policy import Policy

_BLOCK = 512
_CHUNK = 1 << 18
_MAX_EXTENSION = 1 << 16
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE}
_GLOBAL, _LOCAL, _LONG_NAME = b"g", b"x", b"L"
_REFUSED = {
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.LNKTYPE: "is a hard link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a named pipe",
    tarfile.GNUTYPE_SPARSE: "is a sparse file",
    tarfile.GNUTYPE_LONGLINK: "is a link",
}


@dataclass(slots=True)
class _Extension:
    """What the headers before a member say of it."""

    path: str | None = None
    size: int | None = None


class _Tar:
    def __init__(self, archive: str, stream: Plain | Gunzip | Unzstd, unpacking: Unpacking):
        self._archive = archive
        self._stream = stream
        self._unpacking = unpacking

    def unpack(self) -> None:
        while (entry := self._next()) is not None:
            header, extension = entry
            self._member(header, extension)
        self._drain()

    def _next(self) -> tuple[tarfile.TarInfo, _Extension] | None:
        """The next member with what extends it; None at the end of the archive."""
        extension = _Extension()
        extended = False
        while True:
            block = self._exactly(_BLOCK, "its end mark is missing")
            if not any(block):
                if extended:
                    raise self._damaged("it ends after a member's extended header")
                return None
            header = self._header(block)
            if header.type not in (_GLOBAL, _LOCAL, _LONG_NAME):
                return header, extension
            extended = True
            self._extend(header, extension)

    def _header(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as fault:
            raise self._damaged(f"a header is invalid ({fault})") from None
        if header.size < 0:
            raise self._damaged("a member has a negative size")
        return header

    def _extend(self, header: tarfile.TarInfo, extension: _Extension) -> None:
        if header.size > _MAX_EXTENSION:
            raise refused(self._archive, header.name, "has an extended header of absurd size")
        content = self._exactly(header.size, "an extended header is cut off")
        self._padding(header.size)
        if header.type == _LONG_NAME:
            extension.path = self._text(content.rstrip(b"\0"))
        elif header.type == _LOCAL:
            for key, value in self._records(content):
                self._record(header.name, extension, key, value)

    def _record(self, name: str, extension: _Extension, key: str, value: bytes) -> None:
        if key.startswith("GNU.sparse."):
            raise refused(self._archive, name, "is a sparse file")
        if key == "path":
            extension.path = self._text(value)
        elif key == "size":
            if not value.isdigit() or len(value) > 20:
                raise self._damaged("a member's size is no number")
            extension.size = int(value)

    def _records(self, content: bytes) -> Iterator[tuple[str, bytes]]:
        """pax: `LENGTH KEY=VALUE\\n`, the length counting all of it."""
        while content:
            length, space, _ = content[:20].partition(b" ")
            size = int(length) if length.isdigit() else 0
            record = content[:size]
            key, equals, value = record[len(length) + 1 :].partition(b"=")
            if not space or not equals or len(record) != size or not value.endswith(b"\n"):
                raise self._damaged("an extended header is malformed")
            yield self._text(key), value[:-1]
            content = content[size:]

    def _member(self, header: tarfile.TarInfo, extension: _Extension) -> None:
        name = header.name if extension.path is None else extension.path
        size = header.size if extension.size is None else extension.size
        if header.type == tarfile.DIRTYPE:
            if size:
                raise refused(self._archive, name, "is a directory with content of its own")
            self._unpacking.directory(name)
        elif header.type in _FILES:
            if name.endswith("/"):
                raise refused(self._archive, name, "is a file with a directory's name")
            self._unpacking.file(name, size, self._content(size))
            self._padding(size)
        else:
            what = _REFUSED.get(header.type, f"is of the unknown type {header.type!r}")
            raise refused(self._archive, name, what)

    def _content(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            chunk = self._stream.take(min(left, _CHUNK))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk

    def _padding(self, size: int) -> None:
        self._exactly(-size % _BLOCK, "it ends in the middle of a member")

    def _exactly(self, size: int, otherwise: str) -> bytes:
        content = b"".join(self._content(size))
        if len(content) != size:
            raise self._damaged(otherwise)
        return content

    def _drain(self) -> None:
        """To the end: a compressed archive's checksum comes last."""
        while self._stream.take(_CHUNK):
            pass

    def _text(self, content: bytes) -> str:
        return content.decode("utf-8", "surrogateescape")

    def _damaged(self, why: str) -> DamagedArtifact:
        return DamagedArtifact(f"{self._archive} is no intact tar archive: {why}")


def unpack_tar(archive: str, file: BinaryIO, unpacking: Unpacking, policy: Policy) -> None:
    """A plain tar archive."""
    _Tar(archive, Plain(file, Ratio(archive, policy)), unpacking).unpack()


def unpack_tar_gz(archive: str, file: BinaryIO, unpacking: Unpacking, policy: Policy) -> None:
    """A tar archive in gzip."""
    _Tar(archive, Gunzip(file, archive, Ratio(archive, policy)), unpacking).unpack()


def unpack_tar_zst(archive: str, file: BinaryIO, unpacking: Unpacking, policy: Policy) -> None:
    """A tar archive in zstd."""
    _Tar(archive, Unzstd(file, archive, Ratio(archive, policy)), unpacking).unpack()
