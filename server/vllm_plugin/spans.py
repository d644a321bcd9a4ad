"""Which rows of a batch need which adapter slot: worked out once per step, not once per layer.

vLLM gives one slot index per row, -1 for "no adapter". Rows of one request lie together, so a
batch is a few runs of equal indices. Long runs get matrix products of their own. Short ones
(decoding requests give one row each) are taken together: one product with the weights of all
slots, masked so that no row sees a slot that is not its own. Rows without adapter at the border
of everything else are in no span at all; inside a masked span all of their columns are masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

# From here on a run is worth its own two products: each costs a fixed 4-20 us to call.
LONG_RUN = 16
NO_ADAPTER = -1


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [start, end) that use one slot (never -1)."""

    start: int
    end: int
    slot: int


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, end): all of `slot`, or (slot None) a mixture that needs a mask."""

    start: int
    end: int
    slot: int | None
    runs: tuple[Run, ...]

    @property
    def rows(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class Plan:
    """How to treat the rows of one step. `indices` [rows] holds each row's slot or -1."""

    rows: int = 0
    indices: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    slots: frozenset[int] = frozenset()
    _masks: dict[tuple[int, tuple[int, ...]], torch.Tensor] = field(default_factory=dict)

    def runs(self) -> Iterator[Run]:
        """Every run with an adapter, in order."""
        for span in self.spans:
            yield from span.runs

    def foreign(self, span: Span, column_slots: tuple[int, ...]) -> torch.Tensor:
        """Bool [span.rows, columns]: True where a column belongs to another slot than the row.

        Kept for the step: most layers of a model have the same columns.
        """
        key = (span.start, column_slots)
        mask = self._masks.get(key)
        if mask is None:
            rows = torch.tensor(self.indices[span.start : span.end])
            mask = rows.unsqueeze(1) != torch.tensor(column_slots).unsqueeze(0)
            self._masks[key] = mask
        return mask


def plan_rows(indices: Sequence[int]) -> Plan:
    """The plan for rows with these slots; -1 stands for no adapter."""
    runs = list(_runs(indices))
    return Plan(
        rows=len(indices),
        indices=tuple(indices),
        spans=tuple(_spans(runs)),
        slots=frozenset(run.slot for run in runs),
    )


def _runs(indices: Sequence[int]) -> Iterator[Run]:
    start = 0
    for position in range(1, len(indices) + 1):
        if position == len(indices) or indices[position] != indices[start]:
            if indices[start] != NO_ADAPTER:
                yield Run(start, position, indices[start])
            start = position


def _spans(runs: Sequence[Run]) -> Iterator[Span]:
    """Long runs alone; neighbouring short ones together, unless a long gap of -1 parts them."""
    short: list[Run] = []
    for run in runs:
        if run.end - run.start >= LONG_RUN:
            yield from _joined(short)
            short = []
            yield Span(run.start, run.end, run.slot, (run,))
            continue
        if short and run.start - short[-1].end >= LONG_RUN:
            yield from _joined(short)
            short = []
        short.append(run)
    yield from _joined(short)


def _joined(short: Sequence[Run]) -> Iterator[Span]:
    if not short:
        return
    start, end = short[0].start, short[-1].end
    # One slot without gaps needs no mask.
    slot = short[0].slot if len(short) == 1 else None
    yield Span(start, end, slot, tuple(short))
