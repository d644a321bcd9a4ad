"""Reading zip archives: the standard library's reader, with its memory and its trust bounded."""

from __future__ import annotations

import errno
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from adapters.errors import DamagedArtifact, SourceRefused
from adapters.sources.expansion import Ratio
from adapters.sources.members import Unpacking, refused
from adapters.sources.policy import Policy

_CHUNK = 1 << 18
# The directory of 10,000 members with long names; the library reads it in one piece.
_MAX_DIRECTORY = 8 << 20
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_PLAIN_MODES = {0, stat.S_IFREG, stat.S_IFDIR}


class _BoundedReads(io.BufferedReader):
    """Refuses a single read that only a hostile central directory asks for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile("its list of members is of absurd size")
        return super().read(size)


def unpack_zip(archive: str, file: BinaryIO, unpacking: Unpacking, policy: Policy) -> None:
    """A zip archive; encrypted members, links and devices are refused."""
    raw = file.raw if isinstance(file, io.BufferedReader) else file
    assert isinstance(raw, io.RawIOBase), "archives are opened as files"
    size = file.seek(0, io.SEEK_END)
    ratio = Ratio(archive, policy)
    try:
        with _BoundedReads(raw) as bounded, zipfile.ZipFile(bounded) as opened:
            expanded = 0
            for member in opened.infolist():
                _check(archive, member)
                # The library's is_dir() stumbles over an empty name.
                if member.orig_filename.endswith("/"):
                    unpacking.directory(member.orig_filename)
                    continue
                start = expanded
                chunks = _chunks(opened, member, ratio, size, start)
                unpacking.file(member.orig_filename, member.file_size, chunks)
                expanded = start + member.file_size
    except SourceRefused:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as fault:
        raise DamagedArtifact(f"{archive} is no intact zip archive: {fault}") from None
    except (ValueError, OverflowError, struct.error) as fault:
        raise DamagedArtifact(f"{archive} is no intact zip archive: {fault}") from None
    except OSError as fault:
        # A place before the file's beginning; everything else is the disk's.
        if fault.errno != errno.EINVAL:
            raise
        raise DamagedArtifact(
            f"{archive} is no intact zip archive: its offsets are wrong"
        ) from None


def _chunks(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, ratio: Ratio, size: int, start: int
) -> Iterator[bytes]:
    with opened.open(member) as content:
        done = start
        while chunk := content.read(_CHUNK):
            done += len(chunk)
            ratio.check(size, done)
            yield chunk


def _check(archive: str, member: zipfile.ZipInfo) -> None:
    """What the directory alone tells; names and sizes are judged when they are written."""
    name = member.orig_filename
    mode = stat.S_IFMT(member.external_attr >> 16)
    if member.flag_bits & _ENCRYPTED:
        raise refused(archive, name, "is encrypted")
    if stat.S_ISLNK(mode):
        raise refused(archive, name, "is a symbolic link")
    if mode not in _PLAIN_MODES:
        raise refused(archive, name, "is a device, a pipe or a socket")
    if member.compress_type not in _METHODS:
        raise refused(archive, name, "is packed by a method other than deflate")
    if name.endswith("/") and member.file_size:
        raise refused(archive, name, "is a directory with content of its own")
