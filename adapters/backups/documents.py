"""What a backup and an exported adapter say of themselves, and what making and reading one answers.

A backup is laid out as a store is; in an archive the same names are those of the members:

    backup.json                        BackupDocument
    registry.db                        the registry, one whole file
    blobs/sha256/<2 hex>/<64 hex>/…    the content of every version
    reports/<64 hex>/…                 the quality reports of merged models

An exported adapter has `export.json` (ExportDocument) in place of the first two.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from adapters.errors import SourceUnreadable, StoreDamaged, StoreTooNew
from adapters.frozen import Frozen, Lane
from adapters.lanes.models import LaneChange
from adapters.models import Manifest, TagChange

BACKUP_FILE = "backup.json"
EXPORT_FILE = "export.json"

# As many digits as a reference may have.
_Number = Annotated[int, Field(ge=1, le=999_999_999)]


class BackupDocument(Frozen):
    """What lies beside the registry in a backup. `bytes` is the size of all versions' content."""

    format: Literal[1] = 1
    adapterctl: str
    created_at: datetime
    store: str
    # sha256 of registry.db. Two while a backup is brought up to date: the new one and the last.
    registries: tuple[str, ...]
    blobs: int
    bytes: int


class ExportedVersion(Frozen):
    """One version as its registry has it."""

    number: _Number
    digest: str
    base: str
    base_digest: str
    base_architecture: str
    size_bytes: Annotated[int, Field(ge=0, lt=2**62)]
    registered_at: AwareDatetime
    manifest: Manifest


class ExportDocument(Frozen):
    """An adapter. `whole`: with every version, and then with its history; else one version with
    the tags that point at it. `last_number`: the highest number that was ever given."""

    format: Literal[1] = 1
    adapterctl: str
    exported_at: datetime
    adapter: str
    whole: bool
    default_tag: str
    last_number: _Number
    versions: tuple[ExportedVersion, ...] = Field(min_length=1)
    tags: dict[str, _Number]
    tag_history: tuple[TagChange, ...] = ()
    lane_history: tuple[LaneChange, ...] = ()


class BackupReport(Frozen):
    """What a backup has. `copied` of its `blobs` are new, `dropped` are there no more.

    `problems`: versions whose content is damaged in the store and therefore not in the backup.
    """

    path: str
    versions: int
    blobs: int
    copied: int
    dropped: int
    bytes: int
    problems: tuple[str, ...]


class RestoreReport(Frozen):
    """What a restored store has. `bases_missing`: those whose directory is not on this machine.

    `checked_only`: the backup was read and hashed, and nothing was written.
    """

    store: str
    created_at: datetime
    adapters: int
    versions: int
    blobs: int
    bytes: int
    bases_missing: tuple[str, ...]
    problems: tuple[str, ...]
    checked_only: bool


class Exported(Frozen):
    """What an export holds."""

    path: str
    adapter: str
    versions: tuple[str, ...]
    tags: tuple[str, ...]
    bytes: int


class ImportedVersion(Frozen):
    """`created` is false where the adapter had this content already."""

    version: str
    digest: str
    base: str
    lane: Lane
    created: bool


class Imported(Frozen):
    """What an import made, or in a dry run would make. `kept_tags` were there and stay."""

    name: str
    versions: tuple[ImportedVersion, ...]
    tags: dict[str, str]
    kept_tags: tuple[str, ...]
    history: bool
    dry_run: bool


_Document = TypeVar("_Document", bound=Frozen)


def read_document(directory: Path, name: str, kind: type[_Document], shown: str) -> _Document:
    """The document `name` in an opened backup or export; `shown` is what the user named.

    Raises SourceUnreadable where there is none, StoreTooNew, StoreDamaged.
    """
    what = "backup" if name == BACKUP_FILE else "exported adapter"
    try:
        text = (directory / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SourceUnreadable(
            f"{shown} is no {what}: it has no {name}; `adapterctl "
            f"{'backup' if name == BACKUP_FILE else 'export'}` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceUnreadable(f"{name} of {shown} cannot be read: {error}") from None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("format",) and first["type"] == "literal_error":
            raise StoreTooNew(
                f"{shown} has a format that this adapterctl does not know: upgrade adapterctl"
            ) from None
        where = ".".join(str(part) for part in first["loc"])
        raise StoreDamaged(f"{name} of {shown} is damaged ({where}: {first['msg']})") from None
