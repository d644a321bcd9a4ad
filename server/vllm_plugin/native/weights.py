"""One layer's adapters as lora.c reads them, laid out slot by slot when they change."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence

import torch

from server.vllm_plugin.native.library import TYPES, Library
from server.vllm_plugin.written import Stacks, WrittenSlots

# A pointer and the number of columns stand before a slot's ranks.
_HEAD = 2
# A tile of AMX takes so many inputs; the rows that vectors take are as long.
_TILE_INPUTS = 32


class NativeWeights:
    """The weights of one layer; `module` and `slots` are addresses for `Work`.

    a_stacks: [slots, 1, max rank, in] each; none for an embedding, whose x is what it looked up.
    b_stacks: [slots, 1, out, max rank] each; slice i begins in column `offsets`[i] of y.
    All are bfloat16, float16 or float32; float16 is laid out as float32.
    """

    def __init__(
        self, library: Library, a_stacks: Stacks, b_stacks: Stacks, offsets: Sequence[int]
    ):
        self._library = library
        self._a = [_three(stack) for stack in a_stacks]
        self._b = [_three(stack) for stack in b_stacks]
        self.written = WrittenSlots(a_stacks, b_stacks)
        self._dtype = b_stacks[0].dtype
        self.max_columns = len(b_stacks) * (self._b[0].shape[-1] + 1)
        self.inputs = self._a[0].shape[-1] if self._a else self._b[0].shape[-1]
        kept = torch.bfloat16 if self._dtype is torch.bfloat16 else torch.float32
        bfloat = kept is torch.bfloat16
        blocks = bool(library.blocks and self._a) and bfloat and self.inputs % _TILE_INPUTS == 0
        types = library.types
        # By the types of x and y: theirs in C, and whether blocks do.
        self.kinds = {
            (x, y): (types[x], types[y], blocks and x is torch.bfloat16 and y is torch.bfloat16)
            for x in types
            for y in types
            if self._dtype in types
        }
        slices = len(b_stacks)
        header = [self.inputs, slices, TYPES[kept]]
        for stack, offset in zip(self._b, offsets, strict=True):
            header += [stack.shape[1], offset]
        self._header = (ctypes.c_int64 * len(header))(*header)
        self._line = _HEAD + slices
        self._table = (ctypes.c_int64 * (self._line * self._b[0].shape[0]))()
        self._kept: dict[int, torch.Tensor] = {}
        self.module = ctypes.addressof(self._header)
        self.slots = ctypes.addressof(self._table)

    def refresh(self, used: Iterable[int]) -> None:
        """Lay out those of the `used` slots that were written to."""
        if not self.written.refresh():
            return
        for slot in used:
            if slot in self.written.stale:
                self._lay_out(slot)
                self.written.stale.discard(slot)

    def ranks(self, slot: int) -> tuple[int, ...]:
        """The rank of each slice, as it was laid out."""
        first = slot * self._line + _HEAD
        return tuple(self._table[first : first + len(self._b)])

    def _lay_out(self, slot: int) -> None:
        line = slot * self._line
        for index in range(len(self._b)):
            self._table[line + _HEAD + index] = self._rank(slot, index)
        address = self.slots + 8 * line
        size = self._library.size(self.module, address + 8 * _HEAD, bool(self._a))
        kept = self._kept.get(slot)
        if kept is None or not size <= kept.numel() <= 4 * size:
            kept = self._kept[slot] = torch.empty(max(size, 64), dtype=torch.uint8)
        self._table[line] = kept.data_ptr()
        count = len(self._b)
        pointers, numbers = ctypes.c_void_p * count, ctypes.c_int64 * count
        self._library.pack(
            self.module,
            address,
            pointers(*(s[slot].data_ptr() for s in self._a)) if self._a else None,
            numbers(*(s.stride(1) for s in self._a)) if self._a else None,
            pointers(*(s[slot].data_ptr() for s in self._b)),
            numbers(*(s.stride(1) for s in self._b)),
            TYPES[self._dtype],
        )

    def _rank(self, slot: int, index: int) -> int:
        """The true rank of a slice: rows of A after the last one that is not all zero.

        vLLM zeroes a slot before it writes an adapter's rows, so what follows adds nothing;
        a slice that the adapter does not target has rank 0.
        """
        if not self._a:
            # A's rows are looked up elsewhere; columns of B that are zero add nothing as well.
            used = (self._b[index][slot] != 0).any(dim=0).nonzero()
            return int(used[-1]) + 1 if used.numel() else 0
        rows = self._a[index][slot]
        count = min(rows.shape[0], self.written.at_most.get(slot, rows.shape[0]))
        size = rows.element_size()
        rank = self._library.rank(
            rows.data_ptr(), count, rows.stride(0) * size, rows.shape[1] * size
        )
        return int(rank)


def _three(stack: torch.Tensor) -> torch.Tensor:
    """A stack as [slots, rows, columns]; the second axis (layers) is always 1."""
    return stack[:, 0] if stack.dim() == 4 else stack
