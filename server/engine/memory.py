"""What an engine will take, computed before it is started, and how much all may take together.

A plan errs upwards: an engine that would need more than was planned is a neighbour killed by the
kernel. Constants were measured (docs/engines.md) with vLLM 0.32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from adapters.bases.engine_limits import on_cpu
from adapters.bases.headers import ITEM_SIZE, TensorInfo
from adapters.bases.shards import BaseFiles, open_base
from adapters.models import BaseDescriptor, VersionRecord
from server.engine.capacity import Capacity, plan_capacity, resident_bytes, slot_bytes
from server.engine.cgroups import Machine, machine_memory
from server.settings import ServeSettings

GIB = 1024**3
MIB = 1024**2

# Of the machine's memory, for all engines together; the rest is the gateway's, jobs' and the
# page cache's.
MEMORY_SHARE = 0.85
# vLLM's three processes with nothing loaded: interpreters, libraries, their buffers.
CPU_OVERHEAD = 1800 * MIB
# CUDA's context and graphs; not measured here.
GPU_OVERHEAD = 2 * GIB
# vLLM's --max-num-batched-tokens and --max-num-seqs where nobody sets them (vllm/engine/
# arg_utils.py, get_batch_defaults for the API server).
CPU_BATCH = (2048, 128)
GPU_BATCH = (8192, 1024)
# Adapters that the worker keeps read ahead (server/vllm_plugin/ahead.py).
AHEAD = 16
# Of these, one is the output head (or shared with it).
_HEADS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_COMPUTE_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that one engine is taken to need; of the device's memory where there is a GPU."""

    weights: int
    kv_cache: int
    adapters: int
    # Processes and the largest batch.
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
    the server starts: what others use is not ours. 0 for a GPU whose size nobody has told: vLLM
    takes shares of it.
    """
    if not on_cpu() and settings.device_memory_gib is None:
        return 0
    if settings.memory_gib is not None:
        return int(settings.memory_gib * GIB)
    if settings.device_memory_gib is not None and not on_cpu():
        return int(settings.device_memory_gib * MEMORY_SHARE * GIB)
    machine = machine or machine_memory()
    return min(int(machine.total * MEMORY_SHARE), machine.available)


def plan_merged(settings: ServeSettings, files: BaseFiles) -> MemoryPlan:
    """What the engine of a merged model takes."""
    return MemoryPlan(
        weights=weight_bytes(settings, files),
        kv_cache=settings.merged_kv_cache_gib * GIB,
        adapters=0,
        overhead=_overhead(settings, files),
    )


class BasePlan:
    """What the engine of the base takes, as it was started or would be started now."""

    def __init__(self, settings: ServeSettings, path: Path, descriptor: BaseDescriptor):
        """Reads the headers in `path`; raises BaseError."""
        self._settings = settings
        files = open_base(path)
        self._weights = weight_bytes(settings, files)
        self._overhead = _overhead(settings, files)
        self._widths = _slot_widths(descriptor)
        self._sequences = _number(settings, "--max-num-seqs") or _batch()[1]

    def capacity(self, versions: list[VersionRecord]) -> Capacity:
        """How an engine is to be started now, with these registered."""
        return plan_capacity(
            self._settings, versions, widths=self._widths, sequences=self._sequences
        )

    def plan(self, capacity: Capacity | None, versions: list[VersionRecord]) -> MemoryPlan:
        """With as many adapters as it may hold; `capacity` None: it was not started yet."""
        capacity = capacity or self.capacity(versions)
        sizes = [version.size_bytes for version in versions]
        # What is read ahead of its first step is beside the cache.
        resident = resident_bytes(sizes, capacity.cpu_adapters + AHEAD)
        slots = capacity.slots * slot_bytes(capacity.max_rank, self._widths)
        return MemoryPlan(
            weights=self._weights,
            kv_cache=self._settings.kv_cache_gib * GIB,
            adapters=slots + resident,
            overhead=self._overhead,
        )


def weight_bytes(settings: ServeSettings, files: BaseFiles) -> int:
    """The model's parameters in bytes, as the engine has them in memory.

    What is stored in 32 bits is computed in 16 (vLLM's dtype `auto`) unless the engine's arguments
    say otherwise. On a CPU the output head is there twice, plain and packed for the kernel
    (vllm/model_executor/layers/utils.py, dispatch_cpu_unquantized_gemm without remove_weight).
    """
    wide = engine_argument(settings, "--dtype") in {"float32", "float"}
    tensors = {name: info for name, (_, info) in files.tensors().items()}
    total = sum(_resident(info, wide) for info in tensors.values())
    if on_cpu():
        heads = [_resident(info, wide) for name, info in tensors.items() if name.endswith(_HEADS)]
        total += max(heads, default=0)
    return total


def _resident(info: TensorInfo, wide: bool) -> int:
    stored = ITEM_SIZE[info.dtype]
    floating = 4 if wide else _COMPUTE_BYTES
    return math.prod(info.shape) * (floating if info.dtype in _FLOATS else stored)


def _overhead(settings: ServeSettings, files: BaseFiles) -> int:
    """The processes, and what a batch of the largest size needs besides the KV cache.

    Of each token the layer's inputs and the inner ones of its feed-forward part, twice; of each
    sequence the vocabulary's logits, their probabilities, and both again while they are sorted.
    """
    tokens, sequences = _batch()
    tokens = _number(settings, "--max-num-batched-tokens") or tokens
    sequences = _number(settings, "--max-num-seqs") or sequences
    hidden, inner, vocabulary = (
        _size(files, key) for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    batch = tokens * (4 * hidden + 3 * inner) * 2 * _COMPUTE_BYTES + sequences * vocabulary * 16
    return (CPU_OVERHEAD if on_cpu() else GPU_OVERHEAD) + batch


def _batch() -> tuple[int, int]:
    """Tokens and sequences."""
    return CPU_BATCH if on_cpu() else GPU_BATCH


def _slot_widths(descriptor: BaseDescriptor) -> int:
    """Features in and out of everything that a slot has weights for.

    An output head that is the embedding has weights of its own in a slot.
    """
    widths = [(m.kind, m.in_features + m.out_features) for m in descriptor.modules]
    embeddings = [width for kind, width in widths if kind == "embedding"]
    head = max(embeddings, default=0) if descriptor.tied_embeddings else 0
    return sum(width for _, width in widths) + head


def _size(files: BaseFiles, key: str) -> int:
    """A size of the language model; 0 where its configuration names it otherwise."""
    nested = files.config.get("text_config")
    value = (nested if isinstance(nested, dict) else files.config).get(key)
    return value if type(value) is int and value > 0 else 0


def _number(settings: ServeSettings, flag: str) -> int | None:
    value = engine_argument(settings, flag)
    return int(value) if value is not None and value.isdigit() else None


def engine_argument(settings: ServeSettings, flag: str) -> str | None:
    """What the user's own arguments for vLLM say: `--flag value` or `--flag=value`; the last."""
    found = None
    for argument, following in pairwise((*settings.engine_arguments, "")):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else following
    return found
