"""What the function of a job gets to work with, and how it says that a quality gate failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from adapters.store.job_files import WORK_NAME

if TYPE_CHECKING:
    from adapters.catalog import Catalog
    from quantize.merging.merge import Watcher


@dataclass(frozen=True, slots=True)
class JobContext:
    """One run of a job. Ctrl-C and a cancelled job are KeyboardInterrupt in the main thread."""

    id: str
    catalog: Catalog
    # STORE/jobs/<id>: there until the job is removed.
    directory: Path
    actor: str
    watch: Watcher
    # Above 1 the job goes on from what an earlier process of it left.
    starts: int = 1

    @property
    def work(self) -> Path:
        """Where stages put what they finished: survives kill -9, is removed when it succeeded."""
        return self.directory / WORK_NAME


class Rejected(Exception):
    """The result is beyond a gate: `message` is one sentence with the figure."""

    def __init__(self, message: str, result: BaseModel) -> None:
        super().__init__(message)
        self.message = message
        self.result = result
