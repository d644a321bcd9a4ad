"""The table of schemes, and the way from a SOURCE to a path that intake can read.

path    a directory or file as it is; an archive (.zip .tar .tar.gz .tgz) unpacked
https   a file or an archive, downloaded     http   the same, where it is allowed
hf      a repository of the hub
s3 gs az   one object, or an adapter's files below a prefix
upload  what a client has sent to a server before; it is a path by the time it comes here
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import ArtifactError, UsageError
from adapters.sources.archives import is_archive_name, unpack
from adapters.sources.checksum import check_file
from adapters.sources.download import Progress, download
from adapters.sources.hub import fetch_repository
from adapters.sources.objects import fetch_objects
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
    downloaded = _inside(place)
    return _opened(download(address.text, downloaded, policy, progress), place, policy, tell)


def _hub(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    tell("fetch")
    return fetch_repository(address.text, place, policy, progress)


def _objects(
    address: Address, place: Path, policy: Policy, tell: OnStep, progress: Progress | None
) -> Path:
    tell("fetch")
    found = fetch_objects(address, _inside(place), policy, progress)
    if address.sha256 is not None:
        check_file(found, address.sha256, address.shown)
    return found if found.is_dir() else _opened(found, place, policy, tell)


def _inside(place: Path) -> Path:
    """Where a download lies, so that an archive's directory beside it may have its name."""
    downloaded = place / "downloaded"
    downloaded.mkdir()
    return downloaded


def _opened(file: Path, place: Path, policy: Policy, tell: OnStep) -> Path:
    """A downloaded file, unpacked if it is an archive."""
    if not is_archive_name(file.name):
        return file
    tell("unpack")
    unpacked = unpack(file, place, policy)
    # Half of the disk space, while intake works.
    file.unlink()
    return unpacked


SCHEMES: dict[str, Fetch] = {
    "path": _path,
    "https": _url,
    "http": _url,
    "hf": _hub,
    "s3": _objects,
    "gs": _objects,
    "az": _objects,
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
