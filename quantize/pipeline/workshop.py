"""Where one merge job works: its plan, its notes, its directories."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from adapters.store.durable import fsync_directory, fsync_file
from adapters.store.job_files import LOG_NAME
from quantize.jobs.context import JobContext
from quantize.merging.merge import Watcher
from quantize.pipeline.checking import SIDE, Plan
from quantize.pipeline.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Workshop:
    """A merge job at work. `place` is where the model is put together: on the disk on which it
    will be published, so that publishing is a rename."""

    context: JobContext
    plan: Plan
    ledger: Ledger
    place: Path

    @property
    def watch(self) -> Watcher:
        """Who hears of steps and progress."""
        return self.context.watch

    @property
    def merged(self) -> Path:
        """The merged model in fp32, if there is need of it."""
        return self.context.work / "merged"

    @property
    def other(self) -> Path:
        """The same with the base's other weights, where both are compared."""
        return self.context.work / "other"

    @property
    def model(self) -> Path:
        """The model that will be published, complete as soon as it has this name."""
        return model_in(self.place)

    @property
    def side(self) -> Path:
        """Config and tokenizer of the merged model, to ask for token ids."""
        return self.context.work / SIDE

    @property
    def measured(self) -> Path:
        """What measuring leaves: the reference's distributions above all."""
        return self.context.work / "measured"

    def model_size(self) -> int:
        """Bytes of the model on disk."""
        return sum(path.stat().st_size for path in self.model.rglob("*") if path.is_file())

    @property
    def log(self) -> Path:
        """What tools print goes to the job's own log."""
        return self.context.directory / LOG_NAME


def place_for(context: JobContext, out: Path | None) -> Path:
    """The job's work directory, or one beside `out` where that is on another disk."""
    if out is None or os.stat(out.parent).st_dev == os.stat(context.work).st_dev:  # noqa: PTH116
        return context.work / "making"
    return out.parent / f".{out.name}.{context.id}"


def model_in(place: Path) -> Path:
    """The published model's directory until it is published."""
    return place / "model"


def put_on_disk(folder: Path) -> None:
    """Force a whole tree to the disk; files get the modes of published ones."""
    for path in sorted(folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
        (fsync_directory if path.is_dir() else fsync_file)(path)
    folder.chmod(0o755)
    fsync_directory(folder)


def replaced(part: Path, target: Path) -> None:
    """`part` becomes `target`, in place of what a run that was killed may have left there."""
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    fsync_directory(target.parent)
