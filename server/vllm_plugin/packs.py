"""Adapter weights of one module, laid out so that all slices and slots need two products.

vLLM stacks weights per slice as A [slots, 1, max rank, in] and B [slots, 1, out, max rank], and
its CPU code copies each row's whole A and B before multiplying. Here the slots in use are copied
once, when they change, into

    down [in, K]      the A of every slot and slice, side by side
    up   [K, out]     the B below each other, each in its slice's columns, zero elsewhere

where K is the sum of the *true* ranks. The columns of one slot are adjacent, so one slot's rows
are `x @ down[:, a:b] @ up[a:b]`, and a mixture is the whole product with foreign columns masked.
The zeros of a fused layer (q, k, v) cost less than calling three products.

What is called depends on the size, because calling costs as much as computing here: a bfloat16
product of torch 2.13 takes 20 us to call, a float32 one 2-5 us (and rounds nothing in between),
vLLM's own oneDNN product about 8 us, but its weights are fixed and cannot be sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm import _custom_ops as vllm_ops

from server.vllm_plugin.spans import Plan, Span
from server.vllm_plugin.written import Stacks, WrittenSlots

# Rows x columns up to which one slot's product is done in float32. Measured with 8 rows, rank
# 16, 576x960 and 576x3072, one thread, between other layers' work (cold caches).
SMALL_PRODUCT = 512
# How many row counts oneDNN prepares per weight; vLLM uses the same for the base's layers.
_PRIMITIVES = 32

Product = Callable[[torch.Tensor], torch.Tensor]


class Pack:
    """Weights of the slots in `columns`; `column_slots` [K] names each column's slot."""

    def __init__(
        self,
        down: torch.Tensor,
        up: torch.Tensor,
        columns: dict[int, tuple[int, int]],
        column_slots: tuple[int, ...],
    ):
        self.down = down
        self.up = up
        self.columns = columns
        self.column_slots = column_slots
        # A NaN in one adapter's B would reach every row of a masked product.
        self.finite = bool(torch.isfinite(up).all())
        self._products: tuple[Product, Product] | None = None

    def products(self) -> tuple[Product, Product]:
        """x -> x @ down and inner -> inner @ up, with all columns."""
        if self._products is None:
            self._products = (_product(self.down), _product(self.up))
        return self._products


@dataclass(frozen=True, slots=True)
class Work:
    """One addition to rows [start, end) of y: up(down(x) with `foreign` columns set to 0).

    With `fused` set, it takes the place of `up`: y.addmm_(inner, fused) rounds only once.
    """

    start: int
    end: int
    dtype: torch.dtype
    down: Product
    up: Product
    fused: torch.Tensor | None
    foreign: torch.Tensor | None


class ModulePacks:
    """The packs of one module, joined of its slots' when those that are in use change.

    `offsets`[i] is the first output column of slice i. Each slot is laid out when vLLM wrote to
    it; joining copies what is laid out.
    """

    def __init__(self, a_stacks: Stacks, b_stacks: Stacks, offsets: Sequence[int]):
        self.a_stacks = tuple(a_stacks)
        self.b_stacks = tuple(b_stacks)
        self.offsets = tuple(offsets)
        self.written = WrittenSlots(a_stacks, b_stacks)
        self._ranks: dict[int, tuple[int, ...]] = {}
        self._parts: dict[tuple[int, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
        self._packs: dict[torch.dtype, tuple[frozenset[int], Pack]] = {}
        self._work: list[Work] = []
        self._work_for: tuple[Plan, torch.dtype, torch.dtype] | None = None

    def work(
        self, plan: Plan, slots: frozenset[int], x_dtype: torch.dtype, y_dtype: torch.dtype
    ) -> list[Work]:
        """What to add for `plan`, whose slots are among `slots`; made once per plan."""
        if self.written.refresh():
            self._forget(self.written.stale)
            self.written.stale.clear()
        made = self._work_for
        if made is None or made[0] is not plan or made[1] != x_dtype or made[2] != y_dtype:
            native = torch.promote_types(x_dtype, torch.promote_types(y_dtype, self._dtype))
            self._work = [
                work for span in plan.spans for work in self._span_work(plan, span, slots, native)
            ]
            self._work_for = (plan, x_dtype, y_dtype)
        return self._work

    def _forget(self, slots: set[int]) -> None:
        """What was laid out of these slots."""
        for slot in slots:
            self._ranks.pop(slot, None)
        self._parts = {key: part for key, part in self._parts.items() if key[0] not in slots}
        self._packs.clear()
        self._work_for = None

    @property
    def _dtype(self) -> torch.dtype:
        return self.b_stacks[0].dtype

    def _span_work(
        self, plan: Plan, span: Span, slots: frozenset[int], native: torch.dtype
    ) -> list[Work]:
        used = slots if span.slot is None else (span.slot,)
        if not any(sum(self._slot_ranks(slot)) for slot in used):
            return []
        if span.slot is None:
            pack = self._pack(slots, native)
            if pack.finite:
                foreign = plan.foreign(span, pack.column_slots)
                return [Work(span.start, span.end, native, *pack.products(), None, foreign)]
        found = []
        for run in span.runs:
            rank = sum(self._slot_ranks(run.slot))
            if rank:
                few = (run.end - run.start) * rank <= SMALL_PRODUCT
                dtype = torch.float32 if few else native
                pack = self._pack(slots, dtype)
                first, last = pack.columns[run.slot]
                down, up = pack.down[:, first:last], pack.up[first:last]
                products = partial(torch.mm, mat2=down), partial(torch.mm, mat2=up)
                found.append(Work(run.start, run.end, dtype, *products, up, None))
        return found

    def _pack(self, slots: frozenset[int], dtype: torch.dtype) -> Pack:
        """The pack that holds `slots` in `dtype`."""
        known = self._packs.get(dtype)
        if known is not None and known[0] == slots:
            return known[1]
        pack = self._build(slots, dtype)
        self._packs[dtype] = (slots, pack)
        return pack

    def _build(self, slots: frozenset[int], dtype: torch.dtype) -> Pack:
        columns: dict[int, tuple[int, int]] = {}
        column_slots: list[int] = []
        parts = []
        for slot in sorted(slots):
            down, up = self._part(slot, dtype)
            columns[slot] = (len(column_slots), len(column_slots) + down.shape[0])
            column_slots += [slot] * down.shape[0]
            parts.append((down, up))
        if not parts:
            parts.append((self._no_columns(dtype), torch.zeros(0, self._width, dtype=dtype)))
        return Pack(
            down=torch.cat([down for down, _ in parts]).t(),
            up=torch.cat([up for _, up in parts]),
            columns=columns,
            column_slots=tuple(column_slots),
        )

    def _part(self, slot: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """One slot's (down, transposed [K, in]; up [K, out])."""
        known = self._parts.get((slot, dtype))
        if known is not None:
            return known
        ranks = self._slot_ranks(slot)
        down = [_matrix(a, slot)[:r].to(dtype) for a, r in zip(self.a_stacks, ranks, strict=True)]
        up = torch.zeros(sum(ranks), self._width, dtype=dtype)
        row = 0
        for stack, rank, start in zip(self.b_stacks, ranks, self.offsets, strict=True):
            part = _matrix(stack, slot)[:, :rank].t()
            up[row : row + rank, start : start + part.shape[1]] = part
            row += rank
        made = self._parts[slot, dtype] = torch.cat(down), up
        return made

    @property
    def _width(self) -> int:
        return self.offsets[-1] + int(self.b_stacks[-1].shape[-2])

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


def _product(weights: torch.Tensor) -> Product:
    """inner -> inner @ weights, by vLLM's oneDNN product where it has one for the dtype."""
    if weights.dtype is torch.bfloat16 and vllm_ops._supports_onednn:
        try:
            handler = vllm_ops.create_onednn_mm(weights, _PRIMITIVES)
        except RuntimeError:
            # Not on this processor: vLLM falls back to torch for its own layers as well.
            return partial(torch.mm, mat2=weights)
        return partial(_onednn_product, handler)
    return partial(torch.mm, mat2=weights)


def _onednn_product(handler: Any, rows: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = vllm_ops.onednn_mm(handler, rows, None)
    return product


def _matrix(stack: torch.Tensor, slot: int) -> torch.Tensor:
    """One slot of a stack as a matrix; the second axis (layers) is always 1 and may be absent."""
    weights = stack[slot]
    return weights[0] if weights.dim() == 3 else weights


def _last_used_row(matrix: torch.Tensor) -> int:
    # NaN counts as used: it is unequal to zero.
    used = (matrix != 0).any(dim=1).nonzero()
    return int(used[-1]) + 1 if used.numel() else 0
