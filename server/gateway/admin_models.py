"""The documents of the admin API that are not already in adapters.models.

No FastAPI here: the CLI reads the same documents from the other end of the wire.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import AwareDatetime, Field

from adapters.compositions import Part, Recipe
from adapters.frozen import Frozen
from adapters.models import AdapterRecord, Approximate, Manifest, VersionRecord
from adapters.serving.document import NO_CHOICE, Serving, ServingChoice

if TYPE_CHECKING:
    from adapters.store.gc import GcReport
    from adapters.store.verify import VerifyReport


ALPHA = "The lora_alpha of the training, for an artifact that does not store it."


class StoreInfo(Frozen):
    """The store a server or the CLI works on."""

    store: str
    created: bool


class BaseAdd(Frozen):
    """POST /bases: `path` is a Hugging Face model directory on the server's machine."""

    name: str
    path: str


class RegisterRequest(Frozen):
    """POST /adapters: `source` is `upload:ID`, a path of the server, or a URL it can reach.

    `serving` is what is applied to the adapter's requests, before what the artifact says.
    """

    source: str
    name: str
    base: str
    tag: str | None = None
    format: str | None = None
    alpha: float | None = Field(None, description=ALPHA)
    serving: ServingChoice = NO_CHOICE
    dry_run: bool = False
    approximate: Approximate | None = None


class Uploaded(Frozen):
    """POST /uploads: the SOURCE `upload:ID` from now on, for `expires_in` seconds."""

    upload: str = Field(description="The ID.")
    name: str
    bytes: int
    sha256: str = Field(description="64 hex digits.")
    expires_in: int


class InspectRequest(Frozen):
    """POST /inspect: `source` is `upload:ID`, a path of the server, or a URL it can reach."""

    source: str
    format: str | None = None
    alpha: float | None = Field(None, description=ALPHA)
    base: str | None = None
    approximate: Approximate | None = None


class ComposeRequest(Frozen):
    """POST /compositions: versions of one base as a new version of `name`."""

    parts: tuple[Part, ...] = Field(min_length=1)
    recipe: Recipe = Recipe()
    name: str | None = Field(None, description="None: an adapter named by what it is made of.")
    tag: str | None = None
    dry_run: bool = False


class TagRequest(Frozen):
    """PUT /adapters/NAME/tags/TAG: `v3`, a digest or a tag; None only with `default`."""

    version: str | None = None
    default: bool = False


class GcRequest(Frozen):
    """POST /gc."""

    dry_run: bool = False
    audit_older_than: AwareDatetime | None = Field(
        None, description="Remove the audit log's rows from before this moment, too."
    )


class Shown(Frozen):
    """GET /references/REF: the version that a reference names now."""

    reference: str
    adapter: AdapterRecord
    version: VersionRecord
    manifest: Manifest
    serving: Serving = Serving()


class Removed(Frozen):
    """What a DELETE removed, one line each."""

    removed: tuple[str, ...]


class GcAnswer(Frozen):
    """POST /gc: what went or, with `dry_run`, would go."""

    dry_run: bool
    blobs: tuple[str, ...] = Field(description="Digests that no version names.")
    reports: tuple[str, ...] = Field(
        description="Digests of merged models that are gone, with their quality reports."
    )
    staging: tuple[str, ...] = Field(description="Work that was cut short.")
    leases: tuple[str, ...] = Field(description="What dead engines left.")
    kept_for_engines: tuple[str, ...] = Field(
        description="Digests that no version names but a running engine may read again."
    )
    bytes_freed: int
    audit_rows: int = Field(0, description="Rows of the audit log that went.")

    @classmethod
    def of(cls, report: GcReport) -> GcAnswer:
        """The store's report as a document."""
        return cls(**asdict(report))


class VerifyAnswer(Frozen):
    """POST /verify: how much was hashed again, and what is wrong."""

    blobs: int
    bytes_read: int
    orphans: tuple[str, ...] = Field(description="Intact digests that no version names.")
    problems: tuple[str, ...]

    @classmethod
    def of(cls, report: VerifyReport) -> VerifyAnswer:
        """The store's report as a document."""
        return cls(**asdict(report))


class Check(Frozen):
    """One line of `adapterctl doctor`."""

    check: str
    state: Literal["ok", "warning", "problem"]
    found: str
    fix: str | None = Field(None, description="What to do about it; None when all is well.")
