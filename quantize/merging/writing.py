"""Writing one shard of a merged checkpoint: what is unchanged as bytes, the rest by blocks of rows.

Several parameters are worked on at once, each by a thread of its own, and the disk writes what is
there while they go on. Memory is bounded by a block and the factors of one parameter in each thread
and, only where an edit cannot be carried out by rows, one parameter; so it does not depend on the
size of the model.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import BaseError, DamagedArtifact, UsageError
from adapters.intake import tensors
from adapters.intake.lora import load_finite
from adapters.intake.merging import Edit, carried_out
from adapters.store.durable import fsync_directory, fsync_file
from quantize.merging.adding import is_added, write_added
from quantize.merging.layout import Places, Shard, Slot
from quantize.merging.measuring import Measured, Sums
from quantize.merging.reading import grid, opened, read_whole

if TYPE_CHECKING:
    import torch

# 2 MB of fp32: the next step finds most of it in its core's cache, and threads do not fight for the
# interpreter between two steps (2.2 GB: 3.0 s; with blocks of a quarter 4.3 s).
_BLOCK = 1 << 19
_COPY = 64 << 20
# Where the kernel does not copy from file to file.
_PIECE = 1 << 20
# More wait for memory, not for the processor; and what is served meanwhile needs some as well.
_THREADS = min(4, os.cpu_count() or 1)
# How much may wait to be flushed while the next parameters are computed.
_FLUSH = 256 << 20
# The file system has no such call, or not between these two files.
_NO_RANGE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The values of a slot's rows [start, end), in the dtype in which the merge computes."""

    values: Callable[[int, int], torch.Tensor]
    # The base's own rows where there are some to compare with.
    before: Callable[[int, int], torch.Tensor | None]


def write_shard(
    shard: Shard, folder: Path, places: Places, advance: Advance
) -> tuple[Measured, ...]:
    """Write one shard into `folder`, under a hidden name until `seal_shard`; see `Writer`."""
    with Writer(folder, places, advance) as writer:
        return writer.begin(shard).result()


def seal_shard(shard: Shard, folder: Path) -> None:
    """The written shard is forced to the disk and gets its name. Raises OSError."""
    part = _part(shard, folder)
    fsync_file(part)
    part.replace(folder / shard.name)
    fsync_directory(folder)


def _part(shard: Shard, folder: Path) -> Path:
    return folder / f".{shard.name}.part"


class Writer:
    """Writes shards into `folder`, under hidden names until `seal_shard`, as a context manager.

    `advance` hears the bytes as they are written. A shard may be begun before the one before it is
    done: its parameters follow where threads would wait for the last of the other.
    """

    def __init__(self, folder: Path, places: Places, advance: Advance) -> None:
        self._folder = folder
        self._places = places
        self._advance = advance
        self._lock = threading.Lock()
        self._whole = threading.Lock()
        self._stopped = threading.Event()
        self._flusher = ThreadPoolExecutor(1)
        self._pool = ThreadPoolExecutor(_THREADS, initializer=_one_thread_each)
        self._begun: list[Begun] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # The first fault, or Ctrl-C: the others end at their next block.
            self._stopped.set()
        self._pool.shutdown(cancel_futures=kind is not None)
        self._flusher.shutdown()
        for begun in self._begun:
            begun.close()

    def begin(self, shard: Shard) -> Begun:
        """The shard is on its way from now on. Raises OSError for the target."""
        begun = Begun(_part(shard, self._folder), shard.size, self._flusher)
        self._begun.append(begun)
        _write(begun.out, memoryview(shard.header), 0)
        self._told(len(shard.header))
        at = len(shard.header)
        parts: list[_Part] = []
        for slots in _runs(shard.slots):
            parts.append(_Part(slots, at, sum(slot.size for slot in slots)))
            at += parts[-1].size
        # The large ones first: what is left at the end is little, and no thread waits long.
        order = sorted(range(len(parts)), key=lambda index: parts[index].size, reverse=True)
        futures = {index: self._pool.submit(self._run, parts[index], begun) for index in order}
        begun.futures = [futures[index] for index in range(len(parts))]
        return begun

    def _run(self, part: _Part, begun: Begun) -> Measured | None:
        first = part.slots[0]
        if first.copied:
            _copy_run(part.slots, begun.out, part.at, self._told)
            measured = None
        else:
            # What needs a whole parameter in memory waits until no other does.
            with nullcontext() if _by_rows(first, self._places) else self._whole:
                measured = _write_values(first, begun.out, part.at, self._places, self._told)
        begun.flush(part.size)
        return measured

    def _told(self, count: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._advance(count)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one thread writes at once: slots that follow each other from byte `at` on."""

    slots: Sequence[Slot]
    at: int
    size: int


class Begun:
    """A shard that is being written."""

    def __init__(self, path: Path, size: int, flusher: ThreadPoolExecutor) -> None:
        self.futures: list[Future[Measured | None]] = []
        self._lock = threading.Lock()
        self._flusher = flusher
        self._flushing: Future[None] | None = None
        self._unflushed = 0
        self._file = path.open("wb", buffering=0)
        self.out = self._file.fileno()
        os.posix_fallocate(self.out, 0, size)

    def result(self) -> tuple[Measured, ...]:
        """Waits for all of it; what was changed, measured, in the order of the shard.

        Raises OSError for the target, BaseError for the base, DamagedArtifact, and UsageError when
        the output dtype cannot hold a value.
        """
        found = tuple(found for found in map(Future.result, self.futures) if found is not None)
        self.close()
        return found

    def flush(self, count: int) -> None:
        """So many bytes more were written, which the disk may take soon."""
        with self._lock:
            self._unflushed += count
            if self._unflushed >= _FLUSH:
                self._unflushed = 0
                self._flushing = self._flusher.submit(os.fdatasync, self.out)

    def close(self) -> None:
        if self._flushing is not None:
            # Its fault comes again when the shard is sealed.
            self._flushing.exception()
        self._file.close()


class _StoppedError(Exception):
    """Another thread failed, and its fault is the one that is raised."""


def _one_thread_each() -> None:
    import torch

    # OpenMP counts for every thread of ours by itself. Blocks are small: more would wait for each
    # other after every step.
    torch.set_num_threads(1)


def _runs(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Slots one by one, but those together that are copied and lie together in the base too."""
    run: list[Slot] = []
    for slot in slots:
        if run and not (slot.copied and run[-1].copied and _follows(run[-1], slot)):
            yield run
            run = []
        run.append(slot)
    if run:
        yield run


def _follows(one: Slot, other: Slot) -> bool:
    first, second = one.source, other.source
    assert first is not None and second is not None, "a copied slot has a source"
    return first.path == second.path and first.info.end == second.info.start


def _copy_run(run: Sequence[Slot], out: int, target: int, advance: Advance) -> None:
    first, last = run[0].source, run[-1].source
    assert first is not None and last is not None, "a copied slot has a source"
    path, at, end = first.path, first.info.start, last.info.end
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as fault:
        raise BaseError(f"cannot read {path}: {fault.strerror or fault}") from fault
    try:
        copy = _by_range
        while at < end:
            count = copy(source, out, at, target, min(_COPY, end - at))
            if count is None:
                copy = _by_hand
            elif count == 0:
                raise BaseError(f"{path.name} ended early: it changed while it was read")
            else:
                at += count
                target += count
                advance(count)
    finally:
        os.close(source)


def _by_range(source: int, out: int, at: int, target: int, count: int) -> int | None:
    """None: not on this file system."""
    try:
        # 0 is what some file systems say in place of an error.
        return os.copy_file_range(source, out, count, offset_src=at, offset_dst=target) or None
    except OSError as fault:
        if fault.errno in _NO_RANGE:
            return None
        raise


def _by_hand(source: int, out: int, at: int, target: int, count: int) -> int | None:
    data = os.pread(source, min(count, _PIECE), at)
    _write(out, memoryview(data), target)
    return len(data)


def _write_values(
    slot: Slot, out: int, at: int, places: Places, advance: Advance
) -> Measured | None:
    def put(data: memoryview) -> None:
        nonlocal at
        _write(out, data, at)
        at += len(data)
        advance(len(data))

    if is_added(slot):
        measured = write_added(slot, put)
        if measured is None:
            raise _not_finite(slot)
        return measured
    blocks = blocks_of(slot, places)
    rows, width = grid(slot.shape)
    step = block_rows(width)
    dtype = tensors.TORCH_DTYPE[slot.dtype]
    sums = Sums(measured=bool(slot.edits))
    for start in range(0, rows, step):
        end = min(rows, start + step)
        values = blocks.values(start, end).reshape(end - start, width).contiguous()
        rounded = values.to(dtype)
        if not sums.add(values, rounded, blocks.before(start, end)):
            raise _not_finite(slot)
        put(tensors.raw_bytes(rounded))
    return sums.result(slot.name) if slot.edits else None


def block_rows(width: int) -> int:
    """How many rows of `width` values are worked on at once."""
    return max(1, _BLOCK // max(1, width))


def blocks_of(slot: Slot, places: Places) -> Blocks:
    source = slot.source
    # Read once for both: what is changed is most often what it is compared with.
    own = None if source is None else lru_cache(maxsize=1)(opened(source, slot.name))
    alike = source is not None and grid(source.info.shape)[1] == grid(slot.shape)[1]

    def before(start: int, end: int) -> torch.Tensor | None:
        return own(start, end) if own is not None and alike else None

    if not slot.edits:
        assert own is not None, "what is not edited is the base's"
        return Blocks(own, before)
    if not _by_rows(slot, places):
        value = carried_out(slot.edits, lambda name: read_whole(places.of(name), name))
        whole = tensors.computed_in(value).reshape(grid(slot.shape))
        return Blocks(lambda start, end: whole[start:end], before)
    read = places.of(slot.edits[0].reads or "")
    assert read is not None, "looked at by _by_rows"
    rows_of = own if own is not None and read == source else opened(read, slot.name)
    inputs = [_inputs(edit, read.info.dtype) for edit in slot.edits]

    def values(start: int, end: int) -> torch.Tensor:
        rows = rows_of(start, end).reshape(end - start, *slot.shape[1:])
        for edit, given in zip(slot.edits, inputs, strict=True):
            assert edit.by_rows is not None, "looked at by _by_rows"
            rows = edit.by_rows(slice(start, end), rows, *given)
        return rows

    return Blocks(values, before)


def _by_rows(slot: Slot, places: Places) -> bool:
    """Can all edits be carried out some rows at a time, each on what the one before left?"""
    if slot.source is not None and slot.source.made is not None and not slot.source.made.by_rows:
        return False
    if not slot.edits:
        return True
    first, *others = slot.edits
    read = None if first.reads is None else places.of(first.reads)
    if read is None or read.info.shape != slot.shape:
        return False
    return all(
        edit.by_rows is not None and edit.shape == slot.shape for edit in slot.edits
    ) and all(edit.reads == edit.parameter for edit in others)


def _inputs(edit: Edit, dtype: str) -> list[torch.Tensor]:
    computed = tensors.TORCH_DTYPE["F64" if dtype == "F64" else "F32"]
    return [load_finite(tensor).to(computed) for tensor in edit.inputs]


def _write(out: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(out, data, at)
        data, at = data[count:], at + count


def _not_finite(slot: Slot) -> UsageError | DamagedArtifact:
    if slot.dtype == "F16":
        return UsageError(
            f"'{slot.name}' holds values that float16 cannot (65504 is its largest): give "
            "--dtype bfloat16 or float32"
        )
    return DamagedArtifact(f"merged, '{slot.name}' holds values that are not finite")
