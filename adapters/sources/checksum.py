"""The `#sha256=HEX` that may follow a source of one file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from adapters.errors import DamagedArtifact, SourceUnreadable, UsageError

_MARK = "#sha256="
_HEX = re.compile(r"[0-9a-fA-F]{64}")


def split_checksum(source: str) -> tuple[str, str | None]:
    """The source without its checksum, and the checksum in lower case.

    Only `#sha256=` begins one: a lone `#` may be a file name's own. Raises UsageError for a
    checksum that is none.
    """
    rest, mark, digits = source.rpartition(_MARK)
    if not mark:
        return source, None
    if not _HEX.fullmatch(digits):
        raise UsageError(f"'{_MARK}{digits[:80]}' is no checksum: write {_MARK} and 64 hex digits")
    return rest, digits.lower()


def check_file(file: Path, expected: str, shown: str) -> None:
    """Raises DamagedArtifact unless the file's sha256 is `expected`, UsageError for a directory."""
    if file.is_dir():
        raise UsageError(f"{shown} is a directory: a checksum is of one file")
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {shown}: {fault.strerror or fault}") from None
    if found != expected:
        raise DamagedArtifact(
            f"{shown} has another content than was expected: its sha256 is {found}"
        )
