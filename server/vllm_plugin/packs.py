"""Adapter weights of one module, laid out so that all slices and slots need two products.

vLLM stacks weights per slice as A [slots, 1, max rank, in] and B [slots, 1, out, max rank], and
its CPU code copies each row's whole A and B before multiplying. Here the slots in use are copied
once, when they change, into

    down [in, K]      the A of every slot and slice, side by side
    up   [K, out]     the B below each other, each in its slice's columns, zero elsewhere

where K is the sum of the *true* ranks. The columns of one slot are adjacent, so one slot's rows
are `x @ down[:, a:b] @ up[a:b]`, and a mixture is the whole product with foreign columns masked.
The zeros of a fused layer (q, k, v) cost less than calling three products.

Small row counts are computed in float32: there a float32 product costs 2-5 us to call and a
bfloat16 one 20 us (torch 2.13, oneDNN), and nothing is rounded between the two products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Stacks = Sequence[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Pack:
    """Weights of the slots in `columns`; `column_slots` [K] names each column's slot."""

    down: torch.Tensor
    up: torch.Tensor
    columns: dict[int, tuple[int, int]]
    column_slots: tuple[int, ...]
    finite: bool


class ModulePacks:
    """The packs of one module. Rebuilt when vLLM writes to its stacks or other slots are in use.

    `offsets`[i] is the first output column of slice i. Stacks are watched through the version
    counter that torch increments with every in-place write, so no path that loads an adapter
    can be missed.
    """

    def __init__(self, a_stacks: Stacks, b_stacks: Stacks, offsets: Sequence[int]):
        self.a_stacks = tuple(a_stacks)
        self.b_stacks = tuple(b_stacks)
        self.offsets = tuple(offsets)
        self._watched = (*self.a_stacks, *self.b_stacks)
        self._versions: tuple[int, ...] = ()
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._packs: dict[torch.dtype, tuple[frozenset[int], Pack]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which vLLM keeps the weights."""
        return self.b_stacks[0].dtype

    def rank(self, slots: frozenset[int]) -> int:
        """How many columns these slots take together; 0 if none of them adapts the module."""
        self._forget_if_changed()
        return sum(sum(self._slot_ranks(slot)) for slot in slots)

    def get(self, slots: frozenset[int], dtype: torch.dtype) -> Pack:
        """The pack that holds `slots` (a subset of the stacks' slots) in `dtype`.

        After `rank`, in the same step: that looks for changed weights.
        """
        known = self._packs.get(dtype)
        if known is not None and known[0] == slots:
            return known[1]
        pack = self._build(slots, dtype)
        self._packs[dtype] = (slots, pack)
        return pack

    def _forget_if_changed(self) -> None:
        versions = tuple([stack._version for stack in self._watched])
        if versions != self._versions:
            self._versions = versions
            self._ranks.clear()
            self._packs.clear()

    def _build(self, slots: frozenset[int], dtype: torch.dtype) -> Pack:
        down: list[torch.Tensor] = []
        columns: dict[int, tuple[int, int]] = {}
        column_slots: list[int] = []
        for slot in sorted(slots):
            first = len(column_slots)
            for stack, rank in zip(self.a_stacks, self._slot_ranks(slot), strict=True):
                down.append(_matrix(stack, slot)[:rank])
                column_slots += [slot] * rank
            columns[slot] = (first, len(column_slots))
        width = self.offsets[-1] + self.b_stacks[-1].shape[-2]
        joined = torch.cat([part.to(dtype) for part in down]) if down else self._no_columns(dtype)
        up = torch.zeros(len(column_slots), width, dtype=dtype)
        for slot in sorted(slots):
            row = columns[slot][0]
            for index, rank in enumerate(self._slot_ranks(slot)):
                part = _matrix(self.b_stacks[index], slot)[:, :rank].t()
                start = self.offsets[index]
                up[row : row + rank, start : start + part.shape[1]] = part
                row += rank
        return Pack(
            down=joined.t().contiguous(),
            up=up,
            columns=columns,
            column_slots=tuple(column_slots),
            finite=bool(torch.isfinite(up).all()),
        )

    def _no_columns(self, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(0, self.a_stacks[0].shape[-1], dtype=dtype)

    def _slot_ranks(self, slot: int) -> tuple[int, ...]:
        """The true rank of each slice: rows of A after the last one that is not all zero.

        vLLM zeroes a slot before it writes an adapter's rows, so what follows adds nothing;
        a slice that the adapter does not target has rank 0.
        """
        ranks = self._ranks.get(slot)
        if ranks is None:
            ranks = tuple(_last_used_row(_matrix(stack, slot)) for stack in self.a_stacks)
            self._ranks[slot] = ranks
        return ranks


def _matrix(stack: torch.Tensor, slot: int) -> torch.Tensor:
    """One slot of a stack as a matrix; the second axis (layers) is always 1 and may be absent."""
    weights = stack[slot]
    return weights[0] if weights.dim() == 3 else weights


def _last_used_row(matrix: torch.Tensor) -> int:
    # NaN counts as used: it is unequal to zero.
    used = (matrix != 0).any(dim=1).nonzero()
    return int(used[-1]) + 1 if used.numel() else 0
