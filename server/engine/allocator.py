"""How an engine's C library keeps memory: what a step frees is there for the next one.

A step of 2,048 tokens frees tensors of megabytes hundreds of times. glibc gives them back to the
kernel, or keeps them, as the order of sizes happens to tell it: of engines started alike, one takes
50,000 page faults a step and another five (docs/adr/0030). Kept, all engines are as fast as the
lucky ones.

What an engine holds at its largest step it keeps: that is what its memory is planned for.
"""

from __future__ import annotations

from collections.abc import Mapping

_TUNABLES = "GLIBC_TUNABLES"
# Before glibc 2.26 and in its documentation of mallopt: variables for single settings.
_VARIABLES = "MALLOC_"
# Names in LD_PRELOAD of allocators that take glibc's place.
_OTHERS = ("tcmalloc", "jemalloc", "mimalloc", "hoard")

_KEPT = {
    # Large tensors from the heap as well: memory mapped for one is unmapped when it is freed.
    "glibc.malloc.mmap_max": "0",
    "glibc.malloc.trim_threshold": str(1 << 34),
    "glibc.malloc.top_pad": str(1 << 26),
}


def kept_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """GLIBC_TUNABLES for an engine; nothing where the user chose settings or an allocator."""
    preloaded = environment.get("LD_PRELOAD", "")
    if (
        _TUNABLES in environment
        or any(name.startswith(_VARIABLES) for name in environment)
        or any(name in preloaded for name in _OTHERS)
    ):
        return {}
    return {_TUNABLES: ":".join(f"{name}={value}" for name, value in _KEPT.items())}
