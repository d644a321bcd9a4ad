"""Which stages of a job are finished, and with what: a note each, durable once it is there.

A stage does its work, makes it durable, and notes it. Whoever is killed before the note does the
stage again; whoever is killed after it goes on with what the note says.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from adapters.store.durable import fsync_directory, store_io, write_durably

_KEY = "key"
_FOLDER = "stages"

Document = TypeVar("Document", bound=BaseModel)


class Ledger:
    """The notes in `work`/stages. `key` names all that the results depend on.

    Notes of another key are thrown away with everything else in `work` but for `keep`, which was
    made anew already. Raises StoreError for what the file system refuses.
    """

    def __init__(self, work: Path, key: str, *, keep: Collection[str] = ()) -> None:
        self._folder = work / _FOLDER
        wanted = hashlib.sha256(key.encode()).hexdigest()
        with store_io(work):
            try:
                known = (self._folder / _KEY).read_text()
            except FileNotFoundError:
                known = None
            if known != wanted:
                _empty(work, keep)
                self._folder.mkdir(parents=True)
                write_durably(self._folder / _KEY, wanted.encode())
                fsync_directory(work)

    def read(self, stage: str, kind: type[Document]) -> Document | None:
        """What was noted of a finished stage; None if it is to be done."""
        try:
            return kind.model_validate_json(self._path(stage).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def note(self, stage: str, document: BaseModel) -> None:
        """The stage is finished: what it made is on the disk already."""
        with store_io(self._folder):
            write_durably(self._path(stage), document.model_dump_json().encode())

    def _path(self, stage: str) -> Path:
        return self._folder / f"{stage}.json"


def _empty(work: Path, keep: Collection[str]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    for entry in work.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
