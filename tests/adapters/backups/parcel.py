"""An exported adapter, taken apart to be changed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any


class Parcel:
    """An export taken apart, to be changed and packed again."""

    def __init__(self, archive: Path):
        self.path = archive
        self.files: dict[str, bytes] = {}
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member)
                assert content is not None
                self.files[member.name] = content.read()

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files["export.json"])
        return found

    def say(self, **fields: Any) -> None:
        """Change what export.json says."""
        self.files["export.json"] = json.dumps({**self.document, **fields}).encode()

    def pack(self) -> Path:
        with tarfile.open(self.path, "w") as tar:
            for name, data in self.files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return self.path
