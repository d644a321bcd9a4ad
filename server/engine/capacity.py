"""How large an engine's adapter caches must be, from what the registry holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapters.frozen import Lane
from adapters.models import AdapterRecord, VersionRecord
from server.engine.cgroups import machine_memory
from server.settings import ServeSettings

# The ranks vLLM 0.32 takes for --max-lora-rank (vllm/config/lora.py, MaxLoRARanks).
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DEFAULT_RANK = 16
# Room for adapters registered while the engine runs.
HEADROOM = 64
# Share of the free memory that resident adapters may take.
MEMORY_SHARE = 0.25


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


def plan_capacity(settings: ServeSettings, versions: list[VersionRecord]) -> Capacity:
    """Size the caches so that what is registered stays resident, as far as memory allows.

    vLLM's own default keeps no more adapters than there are slots and reads the others from
    disk again and again; one that is read again is a wait for everybody in the batch.
    """
    ranks = [version.rank for version in versions if version.rank is not None]
    max_rank = settings.max_rank or max([DEFAULT_RANK, *ranks])
    if settings.cpu_adapters is not None:
        resident = settings.cpu_adapters
    else:
        # In memory an adapter takes about what it takes on disk; 8 MiB where nothing is known.
        largest = max([version.size_bytes for version in versions], default=8 * 1024 * 1024)
        affordable = int(machine_memory().available * MEMORY_SHARE / max(largest, 1))
        resident = min(len(versions) + HEADROOM, affordable)
    return Capacity(
        slots=settings.slots,
        cpu_adapters=max(settings.slots, resident),
        max_rank=engine_rank(max_rank),
    )
