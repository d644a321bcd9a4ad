"""The same merge into the other weights, to say how far the two models are from each other."""

from __future__ import annotations

from dataclasses import replace

from adapters.intake import tensors
from quantize.merging.layout import Places, Shard, Slot
from quantize.merging.measuring import Compared
from quantize.merging.reading import grid
from quantize.merging.writing import block_rows, blocks_of


def compared_shard(shard: Shard, places: Places, others: Places) -> tuple[Compared, ...]:
    """Every parameter of the shard whose weights differ, merged into both; writes nothing.

    Memory as for writing it, twice. Raises BaseError and DamagedArtifact as that does.
    """
    found = []
    for slot in shard.slots:
        place = others.of(slot.name)
        if place is not None and place != slot.source:
            found.append(_compared(slot, replace(slot, source=place), places, others))
    return tuple(found)


def _compared(slot: Slot, other: Slot, places: Places, others: Places) -> Compared:
    one, two = blocks_of(slot, places), blocks_of(other, others)
    # One of the two is made of four bits, the other is what is stored.
    first_is_original = slot.source is not None and slot.source.made is None
    rows, width = grid(slot.shape)
    step = block_rows(width)
    difference = size = 0.0
    for start in range(0, rows, step):
        end = min(rows, start + step)
        first, second = one.values(start, end), two.values(start, end)
        difference += tensors.squares(first - second)
        size += tensors.squares(first if first_is_original else second)
    return Compared(parameter=slot.name, difference=difference, size=size)
