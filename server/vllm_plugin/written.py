"""Which slots of a layer's stacks were written to since they were last laid out.

A layer keeps its adapters in stacks that vLLM writes to in place. Whoever lays them out anew must
never miss a write, and should not lay out what nobody wrote to. Torch counts the in-place writes
of a tensor, which tells of every one but not where; who writes a whole adapter (slots.py) tells
where. If the count went on without their word, all slots count as written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

Stacks = Sequence[torch.Tensor]


class WrittenSlots:
    """The slots in `stale` have to be laid out; `refresh` before reading it."""

    def __init__(self, a_stacks: Stacks, b_stacks: Stacks):
        # vLLM writes to all stacks of a layer together: two of them tell.
        self._first = a_stacks[0] if a_stacks else b_stacks[0]
        self._last = b_stacks[-1]
        self._count = b_stacks[0].shape[0]
        self._seen = (-1, -1)
        self._inside = False
        self.stale: set[int] = set(range(self._count))
        # What a slot's rank is at most, where the writer said so.
        self.at_most: dict[int, int] = {}

    def refresh(self) -> bool:
        """Take note of writes that nobody announced. True: something is stale."""
        if self._first._version != self._seen[0] or self._last._version != self._seen[1]:
            self.stale.update(range(self._count))
            self.at_most.clear()
            self._seen = self._versions()
        return bool(self.stale)

    @contextmanager
    def writing(self, slot: int, at_most: int | None = None) -> Iterator[None]:
        """Within it, only `slot` is written to; its rank is `at_most` after it."""
        if self._inside:
            yield
            return
        self._inside = True
        known = self._versions() == self._seen
        try:
            yield
            if known:
                self._seen = self._versions()
                self.stale.add(slot)
                self.at_most.pop(slot, None)
                if at_most is not None:
                    self.at_most[slot] = at_most
        finally:
            self._inside = False

    def _versions(self) -> tuple[int, int]:
        return self._first._version, self._last._version
