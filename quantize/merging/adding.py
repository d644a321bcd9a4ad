"""W + s·B·A: the merge of nearly every parameter, in as few passes over memory as there can be.

Computed in fp32 and rounded once, as by the edit itself, whose last bit of fp32 may differ: BLAS
chooses the order of a sum by the shapes and the processor. A merge that is repeated or resumed has
the same blocks, and so the same bytes. A thread's blocks lie in the same memory all the time, which
its core's cache holds and the kernel need not hand out anew; and the change is measured on the
factors: |s·B·A|² = s²·tr((BᵀB)(AAᵀ)), in fp64.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from adapters.errors import BaseError
from adapters.intake import tensors
from adapters.intake.lora import load_finite
from quantize.merging.layout import Slot
from quantize.merging.measuring import Measured

# 1 MB of fp32, 3 MB with all that belongs to a block: about what a core's second cache holds. With
# twice as many values every step costs up to twice as much.
_BLOCK = 1 << 18
# A base in fp64 is computed in fp64.
_STORED = {"BF16", "F16", "F32"}


def is_added(slot: Slot) -> bool:
    """Is the slot what the base has there, and one product that is added to it?"""
    source = slot.source
    return (
        source is not None
        and source.made is None
        and source.info.shape == slot.shape
        and len(slot.shape) == 2
        and {source.info.dtype, slot.dtype} <= _STORED
        and len(slot.edits) == 1
        and slot.edits[0].added is not None
        and slot.edits[0].reads == slot.name
    )


def write_added(slot: Slot, put: Callable[[memoryview], None]) -> Measured | None:
    """Gives the merged rows to `put` block by block, each good until it returns.

    None, and nothing more for `put`, if a value is not finite after rounding. Raises BaseError for
    the base and DamagedArtifact for the factors.
    """
    source, edit = slot.source, slot.edits[0]
    assert source is not None and edit.added is not None, "looked at by is_added"
    a, b = (load_finite(tensor).to(torch.float32) for tensor in edit.inputs)
    rows, width = slot.shape
    # Of (almost) one size, however wide the rows: a product with a single row is a slow one.
    count = -(-rows // max(4, _BLOCK // width))
    memory = _memory(-(-rows // count) * width)
    stored, kept = tensors.TORCH_DTYPE[source.info.dtype], tensors.TORCH_DTYPE[slot.dtype]
    block: _Block | None = None
    before = noise = 0.0
    file = _opened(source.path)
    try:
        at = source.info.start
        for number in range(count):
            start, end = number * rows // count, (number + 1) * rows // count
            if block is None or block.rows != end - start:
                block = _Block(memory, end - start, width, stored, kept)
            at += block.read(file, at, source.path)
            before += block.widened()
            noise += block.added(b[start:end], a, edit.added)
            if not math.isfinite(noise):
                return None
            put(block.written)
    finally:
        os.close(file)
    delta = edit.added**2 * _product_squares(b.double(), a.double())
    return Measured(parameter=slot.name, delta=delta, before=before, noise=noise)


class _Memory:
    """What a thread works in."""

    def __init__(self, values: int) -> None:
        self.values = values
        self.read = torch.empty(4 * values, dtype=torch.uint8)
        self.written = torch.empty(4 * values, dtype=torch.uint8)
        self.wide = torch.empty(values, dtype=torch.float32)
        self.again = torch.empty(values, dtype=torch.float32)


_OWN = threading.local()


def _memory(values: int) -> _Memory:
    """This thread's; ends with the thread."""
    found: _Memory | None = getattr(_OWN, "memory", None)
    if found is None or found.values < values:
        found = _OWN.memory = _Memory(max(values, _BLOCK))
    return found


class _Block:
    """Some rows in a thread's memory, and the steps of their merge; each step once, in order."""

    def __init__(
        self, memory: _Memory, rows: int, width: int, stored: torch.dtype, kept: torch.dtype
    ) -> None:
        self.rows = rows
        count, shape = rows * width, (rows, width)
        raw = memory.read[: count * stored.itemsize]
        self._raw = raw.numpy().data
        self._stored = raw.view(stored)
        self._flat = memory.wide[:count]
        self._wide = self._flat.view(shape)
        self._again = memory.again[:count]
        # fp32 as it is: nothing is rounded.
        self._kept = self._flat
        if kept is not torch.float32:
            self._kept = memory.written[: count * kept.itemsize].view(kept)
        self.written = tensors.raw_bytes(self._kept)

    def read(self, file: int, at: int, path: Path) -> int:
        """The base's rows from byte `at` on; how many bytes they are."""
        done, size = 0, len(self._raw)
        while done < size:
            try:
                count = os.preadv(file, [self._raw[done:]], at + done)
            except OSError as fault:
                raise BaseError(f"cannot read {path}: {fault.strerror or fault}") from fault
            if count == 0:
                raise BaseError(f"{path.name} ended early: it changed while it was read")
            done += count
        return size

    def widened(self) -> float:
        """The base's values in fp32, and the sum of their squares."""
        self._flat.copy_(self._stored)
        return tensors.squares(self._flat)

    def added(self, b: torch.Tensor, a: torch.Tensor, scale: float) -> float:
        """The sum, rounded into `written`, and the sum of the squares of what rounding changed:
        not finite if a rounded value is not."""
        self._wide.addmm_(b, a, alpha=scale)
        self._kept.copy_(self._flat)
        self._again.copy_(self._kept)
        return tensors.squares(self._again.sub_(self._flat))


def _product_squares(b: torch.Tensor, a: torch.Tensor) -> float:
    """|B·A|² without B·A; rounding could bring it below zero."""
    return max(0.0, float(((b.T @ b) * (a @ a.T)).sum()))


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as fault:
        raise BaseError(f"cannot read {path}: {fault.strerror or fault}") from fault
