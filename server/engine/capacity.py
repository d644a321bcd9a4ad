"""How large an engine's adapter caches must be, from what the registry holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapters.bases.engine_limits import on_cpu
from adapters.frozen import Lane
from adapters.models import AdapterRecord, VersionRecord
from server.engine.cgroups import machine_memory
from server.settings import ServeSettings

# The ranks vLLM 0.32 takes for --max-lora-rank (vllm/config/lora.py, MaxLoRARanks).
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
# Room for adapters registered while the engine runs.
HEADROOM = 64
# Share of the free memory that resident adapters may take, and that the slots may take.
MEMORY_SHARE = 0.4
SLOT_SHARE = 0.05
# Slots where nobody says how many. A batch has a few dozen requests on a CPU: with as many slots
# no adapter waits for another's. vLLM's own kernels for GPUs take time for each.
FEWEST_SLOTS = 8
MOST_SLOTS = 32


@dataclass(frozen=True, slots=True)
class Capacity:
    """`slots` active in a batch, `cpu_adapters` resident in memory, ranks up to `max_rank`."""

    slots: int
    cpu_adapters: int
    max_rank: int


# Of an engine that serves one model as it is.
NO_ADAPTERS = Capacity(slots=0, cpu_adapters=0, max_rank=0)


def engine_rank(rank: int) -> int:
    """The smallest rank an engine can be started with that holds `rank`."""
    return next((allowed for allowed in ENGINE_RANKS if allowed >= rank), ENGINE_RANKS[-1])


def hot_versions(adapters: Iterable[AdapterRecord], base_digest: str) -> list[VersionRecord]:
    """Every version that an engine of this base may be asked for."""
    return [
        version
        for adapter in adapters
        for version in adapter.versions.values()
        if version.lane is Lane.HOT and version.base_digest == base_digest
    ]


def plan_capacity(
    settings: ServeSettings,
    versions: list[VersionRecord],
    *,
    widths: int = 0,
    sequences: int = MOST_SLOTS,
) -> Capacity:
    """Size the caches so that what is registered stays resident, as far as memory allows.

    vLLM's own default keeps no more adapters than there are slots and reads the others from
    disk again and again; one that is read again is a wait for everybody in the batch.
    `widths`: features in and out of all modules that a slot holds; `sequences` of one batch.
    """
    ranks = [version.rank for version in versions if version.rank is not None]
    max_rank = engine_rank(settings.max_rank or max([DEFAULT_RANK, *ranks]))
    free = machine_memory().available
    slots = settings.slots
    if slots is None:
        affordable = int(free * SLOT_SHARE / max(slot_bytes(max_rank, widths), 1))
        most = min(MOST_SLOTS, max(sequences, 1)) if on_cpu() else FEWEST_SLOTS
        slots = min(most, max(FEWEST_SLOTS, affordable))
    resident = settings.cpu_adapters
    if resident is None:
        resident = _affordable([version.size_bytes for version in versions], free * MEMORY_SHARE)
    return Capacity(slots=slots, cpu_adapters=max(slots, resident), max_rank=max_rank)


def slot_bytes(max_rank: int, widths: int) -> int:
    """What vLLM allocates for one slot at the start: A [rank, in] and B [out, rank] in 16 bits."""
    return max_rank * widths * 2


def resident_bytes(sizes: list[int], count: int) -> int:
    """What `count` adapters take at most; those that are not registered yet are like the largest.

    In memory an adapter takes about what it takes on disk (half, where that is in 32 bits).
    """
    largest = sorted(sizes, reverse=True)[:count]
    return sum(largest) + (count - len(largest)) * max(sizes, default=0)


def _affordable(sizes: list[int], budget: float) -> int:
    """How many adapters to keep: all and some more, or as many of the largest as fit."""
    # 8 MiB where nothing is known.
    sizes = sorted(sizes, reverse=True) or [8 * 1024 * 1024]
    wanted = len(sizes) + HEADROOM
    left = budget
    for count in range(wanted):
        left -= sizes[count] if count < len(sizes) else sizes[0]
        if left < 0:
            return count
    return wanted
