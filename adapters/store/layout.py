"""Where everything lies in a store, and the two spellings of a digest.

STORE/store.json                       marker {"format": 1}; a directory without it is no store
STORE/registry.db                      SQLite (WAL): names, versions, tags, history
STORE/blobs/sha256/<2 hex>/<64 hex>/   one immutable version: its files and content.json
STORE/staging/<unique>/                work in progress; `lock` in it is held while it lives
STORE/reports/<64 hex>/                a merged model's report.json and report.html
STORE/leases/<engine-id>.lock, /<hex>  what a running engine may read again
STORE/logs/, STORE/run/                the server's own
STORE/jobs/<id>/                       a job's: `lock` held while it lives, `log`, `work/`
STORE/store.lock                       shared: publish and hold; exclusive: gc and migrations
STORE/repair.lock                      exclusive: replacing a damaged blob
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from adapters.errors import InvalidReference, StoreDamaged, StoreNotFound, StoreTooNew

STORE_FORMAT = 1

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ENGINE_NAME = re.compile(r"sha256-([0-9a-f]{64})")
_BLOB_DIRECTORY = re.compile(r"[0-9a-f]{64}")
# A report that is being written, or whose writer was killed.
HALF_REPORT = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{12}")


def engine_name(digest: str) -> str:
    """The name under which engines know a version: `sha256-<64 hex>`.

    A colon would collide with the reference grammar and is awkward in paths and metric labels.
    Raises InvalidReference for anything but a whole digest.
    """
    return f"sha256-{digest_hex(digest)}"


def digest_of_engine_name(name: str) -> str | None:
    """The digest that an engine name stands for; None for every other text.

    Nothing but 64 lower-case hex digits passes, so no name can lead out of the store.
    """
    found = _ENGINE_NAME.fullmatch(name)
    return f"sha256:{found.group(1)}" if found else None


def digest_hex(digest: str) -> str:
    """The 64 hex digits of a whole digest; raises InvalidReference for anything else."""
    found = _DIGEST.fullmatch(digest)
    if found is None:
        raise InvalidReference(
            f"'{digest}' is no whole digest: sha256: and 64 lower-case hex digits"
        )
    return found.group(1)


class StoreLayout:
    """The paths of one store. Computing a path touches no disk."""

    def __init__(self, root: Path):
        self.root = root
        self.marker = root / "store.json"
        self.database = root / "registry.db"
        self.blobs = root / "blobs" / "sha256"
        self.staging = root / "staging"
        self.reports = root / "reports"
        self.leases = root / "leases"
        self.logs = root / "logs"
        self.run = root / "run"
        self.jobs = root / "jobs"
        self.lock = root / "store.lock"
        self.repair_lock = root / "repair.lock"

    def blob(self, digest: str) -> Path:
        """The directory of a version's content; raises InvalidReference for a malformed digest."""
        digits = digest_hex(digest)
        return self.blobs / digits[:2] / digits

    def report(self, digest: str) -> Path:
        """Where the quality report of a merged model lies; raises as `blob` does."""
        return self.reports / digest_hex(digest)

    def job(self, job_id: str) -> Path:
        """A job's own directory; `job_id` is one that the registry gave."""
        return self.jobs / job_id

    def directories(self) -> tuple[Path, ...]:
        """Every directory that a store has from the start, parents first."""
        return (
            self.root,
            self.blobs.parent,
            self.blobs,
            self.staging,
            self.leases,
            self.logs,
            self.run,
            self.jobs,
        )

    def stored_digests(self) -> list[str]:
        """The digests of all blob directories, sorted. Other entries are not ours: left alone."""
        found: list[str] = []
        for fan in _entries(self.blobs):
            if len(fan.name) != 2 or not fan.is_dir():
                continue
            found.extend(
                f"sha256:{entry.name}"
                for entry in _entries(fan)
                if _BLOB_DIRECTORY.fullmatch(entry.name) and entry.name.startswith(fan.name)
            )
        return sorted(found)

    def reported_digests(self) -> list[str]:
        """The digests that have a report, sorted."""
        return sorted(
            f"sha256:{entry.name}"
            for entry in _entries(self.reports)
            if _BLOB_DIRECTORY.fullmatch(entry.name)
        )

    def check_marker(self) -> None:
        """Raises StoreNotFound, StoreDamaged or StoreTooNew unless this is a store we can use."""
        try:
            text = self.marker.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise StoreNotFound(
                f"there is no store at {self.root}: make one with `adapterctl init`, "
                "or name another with --store"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreDamaged(
                f"the store's marker {self.marker} cannot be read: {error}"
            ) from None
        try:
            marker = json.loads(text)
            store_format = int(marker["format"])
        except (ValueError, KeyError, TypeError):
            raise StoreDamaged(
                f'the store\'s marker {self.marker} is damaged: it should be {{"format": 1}}; '
                "write that back, then run `adapterctl verify`"
            ) from None
        if store_format > STORE_FORMAT:
            raise StoreTooNew(
                f"the store at {self.root} has format {store_format}, made by a newer adapterctl; "
                f"this one knows format {STORE_FORMAT}: upgrade adapterctl"
            )


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
