"""The table of schemes, and the way from a SOURCE to a path that intake can read.

path    a directory or file as it is; an archive (.zip .tar .tar.gz .tgz) unpacked
https   a file or an archive, downloaded     http   the same, where it is allowed
hf      a repository of the hub
s3 gs az   named and refused: the library for them is not installed with this version
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import ArtifactError, SourceUnreadable, UsageError
from adapters.sources.archives import is_archive_name, unpack
from adapters.sources.download import Progress, download
from adapters.sources.hub import fetch_repository
from adapters.sources.policy import Policy
from adapters.sources.uri import Address

OnStep = Callable[[str], None]
Fetch = Callable[[Address, Path, Policy, OnStep, Progress | None], Path]


def _path(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    tell("unpack")
    return unpack(Path(address.text), place, policy)


def _url(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    tell("fetch")
    downloaded = place / "downloaded"
    downloaded.mkdir()
    file = download(address.text, downloaded, policy, progress)
    if not is_archive_name(file.name):
        return file
    tell("unpack")
    unpacked = unpack(file, place, policy)
    # Half of the disk space, while intake works.
    file.unlink()
    return unpacked


def _hub(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    tell("fetch")
    return fetch_repository(address.text, place, policy, progress)


def _object_store(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    raise SourceUnreadable(
        f"{address.scheme}:// sources are not built into this version: copy {address.shown} to a "
        "directory with the provider's own tool and register that, or give a signed https:// URL"
    )


SCHEMES: dict[str, Fetch] = {
    "path": _path,
    "https": _url,
    "http": _url,
    "hf": _hub,
    "s3": _object_store,
    "gs": _object_store,
    "az": _object_store,
}


def needs_place(address: Address) -> bool:
    """Whether anything has to be fetched or unpacked; raises UsageError for an unknown scheme."""
    if address.scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES if name != "path")
        raise UsageError(
            f"'{address.scheme}:' is no scheme of a source: give a path, or one of {known}"
        )
    if address.scheme != "path":
        return True
    path = Path(address.text)
    try:
        return is_archive_name(path.name) and path.is_file()
    except OSError:
        return False  # intake says what is wrong with it


def fetch(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    """The artifact as a local path below `place`, an empty directory of the caller's."""
    return SCHEMES[address.scheme](address, place, policy, tell, progress)


@contextmanager
def told_as(address: Address, local: Path) -> Iterator[None]:
    """What is said of the local path inside is said of the source: the path is soon gone."""
    try:
        yield
    except ArtifactError as fault:
        raise type(fault)(rename(fault.message, address, local), param=fault.param) from fault


def rename(message: str, address: Address, local: Path) -> str:
    """The message with the source's name where the local path stood."""
    # Intake resolves links, so that a store behind one has two names.
    for path in (str(local), str(local.resolve())):
        message = message.replace(path, address.shown)
    return message
