"""One step's rows as lora.c goes through them, and the calls."""

from __future__ import annotations

import ctypes
from array import array
from collections import defaultdict

import torch

from server.vllm_plugin.native.library import Library, Work
from server.vllm_plugin.native.weights import NativeWeights
from server.vllm_plugin.spans import Plan

# Rows of one slot that are done together: they share what is read of its weights.
CHUNK = 16
# Rows of a block; BLOCK and BLOCKS in blocks.h.
BLOCK, BLOCKS = 16, 16
# Rows that share a thread's copy of x; ROWS in work.h.
_ROWS = 4


class _Part:
    """Arrays of chunks, rows and runs, alive as long as `work` points at them."""

    def __init__(self, plan: Plan, *, blocks: bool):
        runs, rows = array("i"), defaultdict[int, list[int]](list)
        for run in plan.runs():
            start = run.start
            if blocks and run.end - start >= BLOCK:
                count = (run.end - start) // BLOCK
                runs.extend((run.slot, start, count))
                start += count * BLOCK
            rows[run.slot].extend(range(start, run.end))
        chunks, order = array("i"), array("i")
        for slot, members in rows.items():
            for first in range(0, len(members), CHUNK):
                chunks.extend((slot, len(order) + first, min(CHUNK, len(members) - first)))
            order.extend(members)
        self.rows = len(order)
        self._arrays = (chunks, order, runs)
        self.work = Work()
        self.work.chunks, self.work.chunk_count = chunks.buffer_info()[0], len(chunks) // 3
        self.work.rows, self.work.row_count = order.buffer_info()[0], len(order)
        self.work.runs, self.work.run_count = runs.buffer_info()[0], len(runs) // 3
        self.address = ctypes.addressof(self.work)


class NativeStep:
    """A plan in both forms: with blocks of neighbouring rows, and without."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._parts: list[_Part | None] = [None, None]

    def part(self, *, blocks: bool) -> _Part:
        """Made when the first layer asks for it."""
        found = self._parts[blocks]
        if found is None:
            found = self._parts[blocks] = _Part(self.plan, blocks=blocks)
        return found


class NativeCaller:
    """Calls lora.c; owns the scratch memory of all calls, so one thread at a time."""

    def __init__(self, library: Library):
        self.library = library
        self._scratch = torch.empty(0)
        self._address = 0
        self._columns = 0
        self._private = 0

    def room_for(self, weights: NativeWeights) -> None:
        """Take note of a layer, before it is first used in `apply`."""
        columns = -(-weights.max_columns // 16) * 16
        self._columns = max(self._columns, columns)
        width = -(-weights.inputs // 32) * 32
        self._private = max(self._private, _ROWS * width, BLOCKS * BLOCK * self._columns // 2)

    def apply(
        self,
        step: NativeStep,
        weights: NativeWeights,
        x: torch.Tensor,
        y: torch.Tensor,
        scale: float,
        *,
        inner_given: bool = False,
    ) -> bool:
        """y[row] += scale * B[slot] (A[slot] x[row]) for every row of the step with an adapter.

        x [rows, in] and y [rows, columns]. With `inner_given`, x [rows, max rank] stands for
        A[slot] x. False, and nothing done: these numbers or strides are not for lora.c.
        """
        kinds = weights.kinds.get((x.dtype, y.dtype))
        (x_stride, x_step), (y_stride, y_step) = x.stride(), y.stride()
        if kinds is None or x_step != 1 or y_step != 1:
            return False
        x_type, y_type, blocks = kinds
        part = step.part(blocks=blocks)
        weights.refresh(step.plan.slots)
        work = part.work
        if work.columns != self._columns or work.private_size != self._private:
            self._provide(part)
        # In every call: another step may have needed more, and moved it, since.
        work.scratch = self._address
        work.module, work.slots = weights.module, weights.slots
        work.x, work.y = x.data_ptr(), y.data_ptr()
        work.x_stride, work.y_stride, work.y_columns = x_stride, y_stride, y.shape[1]
        work.x_type, work.y_type = x_type, y_type
        work.scale, work.inner_given = scale, inner_given
        self.library.apply(part.address)
        return True

    def _provide(self, part: _Part) -> None:
        work = part.work
        work.columns, work.private_size = self._columns, self._private
        work.parts = self.library.parts()
        needed = work.parts * self._private + part.rows * self._columns
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed)
            self._address = self._scratch.data_ptr()
