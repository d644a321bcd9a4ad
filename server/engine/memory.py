"""What an engine will take, computed before it is started, and how much all may take together.

A plan errs upwards: an engine that would need more than was planned is a neighbour killed by the
kernel. Constants were measured (docs/engines.md) with vLLM 0.32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapters.bases.engine_limits import on_cpu
from adapters.bases.headers import ITEM_SIZE, TensorInfo
from adapters.bases.shards import BaseFiles, open_base
from adapters.errors import UsageError
from adapters.models import BaseDescriptor, Quantization, VersionRecord
from server.engine.capacity import Capacity
from server.engine.cgroups import Machine, machine_memory
from server.settings import ServeSettings

GIB = 1024**3
MIB = 1024**2

# Of the machine's memory, for all engines together; the rest is the gateway's, jobs' and the
# page cache's.
MEMORY_SHARE = 0.85
# vLLM's processes besides weights and KV cache: code, interpreter, torch, buffers of a batch.
CPU_OVERHEAD = 1400 * MIB
# CUDA's context, graphs and activations; not measured here.
GPU_OVERHEAD = 2 * GIB
# What CPU kernels keep of quantized layers beside what the checkpoint has.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_COMPUTE_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that one engine is taken to need; of the device's memory where there is a GPU."""

    weights: int
    kv_cache: int
    adapters: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.adapters + self.overhead

    def __str__(self) -> str:
        parts = [("weights", self.weights), ("KV cache", self.kv_cache)]
        if self.adapters:
            parts.append(("adapters", self.adapters))
        parts.append(("processes", self.overhead))
        return " + ".join(f"{gib(size)} {what}" for what, size in parts)


def gib(size: int) -> str:
    """`1.3`: bytes in GiB, rounded up to a tenth, as plans are."""
    return f"{math.ceil(size * 10 / GIB) / 10:.1f}"


def memory_limit(settings: ServeSettings, machine: Machine | None = None) -> int:
    """Bytes that all engines may take together.

    By default a share of the machine's (or the container's) memory, and no more than is free when
    the server starts: what others use is not ours. Raises UsageError for a GPU of unknown size.
    """
    if settings.memory_gib is not None:
        return int(settings.memory_gib * GIB)
    if not on_cpu():
        if settings.device_memory_gib is None:
            raise UsageError(
                "merged engines share the device's memory, and its size is not known: set "
                "device_memory_gib"
            )
        return int(settings.device_memory_gib * MEMORY_SHARE * GIB)
    machine = machine or machine_memory()
    return min(int(machine.total * MEMORY_SHARE), machine.available)


def plan_merged(
    settings: ServeSettings, files: BaseFiles, quantization: Quantization | None
) -> MemoryPlan:
    """What the engine of a merged model takes."""
    return MemoryPlan(
        weights=weight_bytes(files),
        kv_cache=settings.merged_kv_cache_gib * GIB,
        adapters=0,
        overhead=CPU_OVERHEAD if on_cpu() else GPU_OVERHEAD,
    )


def plan_base(
    settings: ServeSettings,
    path: Path,
    descriptor: BaseDescriptor,
    capacity: Capacity,
    versions: Iterable[VersionRecord],
) -> MemoryPlan:
    """What the engine of the base takes, with as many adapters as it may hold of these versions."""
    largest = max((version.size_bytes for version in versions), default=0)
    return MemoryPlan(
        weights=weight_bytes(open_base(path)),
        kv_cache=settings.kv_cache_gib * GIB,
        adapters=_slot_bytes(descriptor, capacity) + capacity.cpu_adapters * largest,
        overhead=CPU_OVERHEAD if on_cpu() else GPU_OVERHEAD,
    )


def weight_bytes(files: BaseFiles) -> int:
    """The model's parameters in bytes, as the engine has them in memory.

    What is stored in 32 bits is computed in 16 (vLLM's dtype `auto`). On a CPU the output head is
    there twice, plain and packed for the kernel (vllm/model_executor/layers/utils.py,
    dispatch_cpu_unquantized_gemm without remove_weight).
    """
    tensors = {name: info for name, (_, info) in files.tensors().items()}
    total = sum(_resident(info) for info in tensors.values())
    if on_cpu():
        total += max((_resident(t) for n, t in tensors.items() if _vocabulary(n)), default=0)
    return total


def _vocabulary(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight"))


def _resident(info: TensorInfo) -> int:
    size = min(ITEM_SIZE[info.dtype], _COMPUTE_BYTES if info.dtype in _FLOATS else 8)
    return math.prod(info.shape) * size


def _slot_bytes(descriptor: BaseDescriptor, capacity: Capacity) -> int:
    """vLLM allocates A [rank, in] and B [out, rank] of every slot and linear layer at the start."""
    widths = sum(m.in_features + m.out_features for m in descriptor.modules if m.kind == "linear")
    return capacity.slots * capacity.max_rank * widths * _COMPUTE_BYTES
