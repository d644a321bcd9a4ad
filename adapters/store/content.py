"""A blob's own description, `content.json`, whose bytes give the blob its digest.

    {"base":"sha256:…","files":{"adapter_config.json":"sha256:…",…},"format":1}

Keys sorted, no spaces, no newline at the end. So one digest covers every byte of every file and
the base that the content was checked against.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONTENT_FILE = "content.json"
CONTENT_FORMAT = 1

_CHUNK = 1 << 20

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Content:
    """The files of a blob (flat name -> sha256 digest) and the digest of its base."""

    base: str
    files: dict[str, str]

    def encode(self) -> bytes:
        """The canonical bytes of content.json."""
        document = {"base": self.base, "files": self.files, "format": CONTENT_FORMAT}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8")

    @property
    def digest(self) -> str:
        """The blob's digest: sha256 of the canonical bytes."""
        return f"sha256:{hashlib.sha256(self.encode()).hexdigest()}"


def decode_content(data: bytes) -> Content | None:
    """Parses content.json; None if it is not exactly what `Content.encode` writes."""
    try:
        document = json.loads(data)
        content = Content(base=document["base"], files=dict(document["files"]))
        same = content.encode() == data
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    # Flat names only: a path in here could lead out of the blob.
    flat = all(Path(name).name == name for name in content.files)
    return content if same and flat else None


def file_digest(path: Path, on_bytes: OnBytes | None = None) -> str:
    """sha256 of a file; `on_bytes` hears of every chunk. Raises OSError."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return f"sha256:{total.hexdigest()}"


def blob_problem(directory: Path, digest: str, on_bytes: OnBytes | None = None) -> str | None:
    """What is wrong with the blob that should be in `directory`, after hashing all of it.

    None means intact: content.json hashes to `digest` and every file to what it says.
    """
    if not directory.exists():
        return "it is missing"
    try:
        data = (directory / CONTENT_FILE).read_bytes()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            return f"{CONTENT_FILE} is not what the digest says"
        content = decode_content(data)
        if content is None:
            return f"{CONTENT_FILE} is malformed"
        return _files_problem(directory, content, on_bytes)
    except FileNotFoundError:
        return f"{CONTENT_FILE} is missing"
    except OSError as error:
        return f"it cannot be read: {error}"


def _files_problem(directory: Path, content: Content, on_bytes: OnBytes | None) -> str | None:
    present = {entry.name for entry in directory.iterdir()}
    if extra := sorted(present - {CONTENT_FILE, *content.files}):
        return f"{extra[0]} does not belong there"
    for name, wanted in sorted(content.files.items()):
        path = directory / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        if file_digest(path, on_bytes) != wanted:
            return f"{name} has changed: its sha256 is not the recorded one"
    return None


def blob_complete(directory: Path) -> bool:
    """Cheap check, no hashing: content.json is well-formed and every file it names is there."""
    try:
        content = decode_content((directory / CONTENT_FILE).read_bytes())
        return content is not None and all((directory / n).is_file() for n in content.files)
    except OSError:
        return False
