"""Where a merge writes: a hidden directory beside the output, which it becomes by one rename.

What is in it is never looked at by name: only a finished merge has the output's name. A run that
was broken off leaves the shards it finished and `state.json`; the next run with the same inputs
goes on from there, any other starts anew.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from pydantic import Field, ValidationError

from adapters.errors import (
    AdapterctlError,
    AlreadyExists,
    ArtifactError,
    BaseError,
    DiskFull,
    InUse,
    StoreDamaged,
    StoreReadOnly,
    UsageError,
)
from adapters.frozen import Frozen
from adapters.store.durable import fsync_directory, fsync_file, write_durably
from quantize.merging.measuring import Compared, Measured

# Beside the model, as its last file.
REPORT = "merge_report.json"
_STATE = "state.json"
# Running it again does not cure these.
_WRONG_INPUTS = (ArtifactError, BaseError, UsageError)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class _State(Frozen):
    """Of which plan the shards are, and what was measured in each finished one."""

    plan: str
    shards: dict[str, tuple[Measured, ...]]
    compared: dict[str, tuple[Compared, ...]] = Field(default_factory=dict)


class Workspace:
    """The hidden directory of one merge into `out`; locked while entered.

    Entering raises AlreadyExists or UsageError for an `out` that cannot be written to, and InUse
    while another merge works on it.
    """

    def __init__(self, out: Path, plan: str) -> None:
        self.out = out
        self.path = out.parent / f".{out.name}.merging"
        self._plan = plan
        self._state = _State(plan=plan, shards={})
        self._descriptor = -1
        self._published = False

    def __enter__(self) -> Workspace:
        check_out(self.out)
        with written(self.out):
            self.path.mkdir(exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                raise InUse(f"another merge is writing to {self.out}: wait for it") from None
            try:
                self._resume()
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._published:
            for part in self.path.glob(".*.part"):
                part.unlink(missing_ok=True)
            if not self._state.shards or isinstance(error, _WRONG_INPUTS):
                shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)

    def finished(self, shard: str) -> tuple[Measured, ...] | None:
        """What was measured in a shard that an earlier run finished; None if it is to be done."""
        return self._state.shards.get(shard)

    def compared(self, shard: str) -> tuple[Compared, ...]:
        """What was compared in a finished shard."""
        return self._state.compared.get(shard, ())

    def finish(
        self, shard: str, measured: tuple[Measured, ...], compared: tuple[Compared, ...] = ()
    ) -> None:
        """Notes durably that the shard, which is on the disk already, is done."""
        self._state = _State(
            plan=self._plan,
            shards={**self._state.shards, shard: measured},
            compared={**self._state.compared, shard: compared},
        )
        self._write_state()

    def check_space(self, needed: int) -> None:
        """Raises DiskFull unless `needed` bytes are free on the output's disk."""
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise DiskFull(
                f"the merged model needs {gigabytes(needed)} in {self.out.parent}, "
                f"{gigabytes(free)} are free: free some, or name another place with --out"
            )

    def publish(self) -> None:
        """Everything to the disk, then the output's name: from now on the merge is there."""
        for file in sorted(self.path.rglob("*")):
            (fsync_directory if file.is_dir() else fsync_file)(file)
        (self.path / _STATE).unlink(missing_ok=True)
        fsync_directory(self.path)
        try:
            # Takes the place of an empty directory, and of nothing else.
            self.path.rename(self.out)
        except OSError as fault:
            if fault.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(self.out) from None
            raise
        self._published = True
        fsync_directory(self.out.parent)

    def _resume(self) -> None:
        """Keep what an earlier run of this plan finished, and nothing else that a merge left."""
        entries = list(self.path.iterdir())
        # Written first and removed last; the report is there when it is gone.
        marks = {_STATE, REPORT} & {entry.name for entry in entries}
        ours = marks or all(entry.name.startswith(f".{_STATE}.") for entry in entries)
        if not ours or self.path.is_symlink():
            raise AlreadyExists(
                f"{self.path} is there and no merge has made it: name another --out, or remove it"
            )
        state = self._read_state()
        if state is not None and state.plan == self._plan:
            there = {n: m for n, m in state.shards.items() if (self.path / n).is_file()}
            compared = {n: c for n, c in state.compared.items() if n in there}
            self._state = _State(plan=self._plan, shards=there, compared=compared)
        self._write_state()
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in {_STATE, *self._state.shards}:
                entry.unlink()

    def _write_state(self) -> None:
        write_durably(self.path / _STATE, self._state.model_dump_json().encode())

    def _read_state(self) -> _State | None:
        try:
            return _State.model_validate_json((self.path / _STATE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None


def check_out(out: Path) -> None:
    """Raises AlreadyExists or UsageError unless a merge may be published under this name."""
    if not out.name:
        raise UsageError(f"'{out}' cannot be the directory of a merged model: name a new one")
    if not out.parent.is_dir():
        raise UsageError(f"there is no directory {out.parent} to write the merged model into")
    with written(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            raise _taken(out)
        if out.is_dir() and any(out.iterdir()):
            raise _taken(out)


def _taken(out: Path) -> AlreadyExists:
    return AlreadyExists(
        f"{out} is there already and no empty directory: name another with --out, or remove it"
    )


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Turns an OSError met while writing the output into the error that says what to do."""
    try:
        yield
    except AdapterctlError:
        raise
    except OSError as fault:
        if fault.errno in _FULL:
            raise DiskFull(
                f"no space left for the merged model in {out.parent}: free some and run the same "
                "command again, which goes on after the last finished shard"
            ) from fault
        if fault.errno in _READ_ONLY:
            raise StoreReadOnly(f"cannot write to {out.parent}: {fault.strerror}") from fault
        if fault.errno == errno.EIO:
            raise StoreDamaged(f"the disk under {out.parent} reports an error") from fault
        raise UsageError(f"cannot write {out}: {fault.strerror or fault}") from fault


def gigabytes(count: int) -> str:
    """At least two digits, so that small models are not all `0.0 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
