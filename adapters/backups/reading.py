"""Opening a backup or an exported adapter: a directory as it is, an archive unpacked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from adapters.errors import SourceUnreadable
from adapters.sources.archives import reader_of
from adapters.sources.members import Unpacking
from adapters.sources.policy import Policy


def opened(source: Path, place: Path, policy: Policy) -> Path:
    """The directory with the files: `source`, or `place`/content with what its archive holds.

    Raises SourceUnreadable, SourceRefused for members that no such archive has, DamagedArtifact.
    """
    if source.is_dir():
        return source
    try:
        file = source.open("rb")
    except OSError as fault:
        raise SourceUnreadable(f"cannot read {source}: {fault.strerror or fault}") from None
    with file:
        target = place / "content"
        target.mkdir()
        unpacking = Unpacking(source.name, target, policy)
        start = file.read(4)
        file.seek(0)
        reader_of(source.name, start)(source.name, file, unpacking, policy)
    return target


def of_ones_own(policy: Policy) -> Policy:
    """Without the limits that protect against strangers' archives: a backup is one's own store."""
    return dataclasses.replace(policy, max_bytes=1 << 62, max_members=1 << 31, max_ratio=1 << 31)
