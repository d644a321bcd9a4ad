"""Copies an adapter from memory into a slot with two calls, and only what is not there already.

vLLM 0.32 zeroes a module's slot, then copies each tensor, module by module: for rank 16 of a 135M
model 20 MB written where 10 would do, in a thousand calls. Here the views of every slot are made
once, everything is copied by one call of torch, and zeroed is only what the adapter before left
beyond the ranks of this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

from server.vllm_plugin.punica import AdapterPunicaWrapper

Ranks = tuple[int, ...]

# Their set_lora copies tensors as they are; others split, transpose or expand them.
_PLAIN = (BaseLinearLayerWithLoRA.set_lora, MergedColumnParallelLinearWithLoRA.set_lora)


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of a module, `name` being its own in an adapter: where all slots' weights are.

    `a` [slots, 1, max rank, in], `b` [slots, 1, out, max rank].
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)"""
        return self.a.shape[-1], self.b.shape[-2]


class SlotWriter:
    """Writes adapters into the slots of one model manager."""

    def __init__(self, models: Any):
        """`models`: vLLM's LoRAModelManager, its modules made."""
        self._models = models
        self._slices: dict[str, tuple[Slice, ...]] = {}
        # Modules whose own set_lora has to do it.
        self._others: dict[str, Any] = {}
        for name, module in models.modules.items():
            parts = models.packed_modules.get(name, [name])
            if _is_plain(module, len(parts)):
                stacks = zip(parts, module.lora_a_stacked, module.lora_b_stacked, strict=True)
                self._slices[name] = tuple(Slice(*one) for one in stacks)
            else:
                self._others[name] = module
        self._flat = [one for slices in self._slices.values() for one in slices]
        self._stacks = [stack for one in self._flat for stack in (one.a, one.b)]
        # Of each slot, the ranks up to which its slices are not zero; None: nobody knows.
        self._ranks: list[Ranks | None] = [None] * int(models.lora_slots)
        self._into: dict[int, tuple[Ranks, list[torch.Tensor]]] = {}
        # Slots in which the other modules may not be zero.
        self._touched: dict[int, set[str]] = {}
        self._versions: list[int] = []

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(in, out) by the name that an adapter's tensors have; of plain modules."""
        return {one.name: one.shape for slices in self._slices.values() for one in slices}

    def activate(self, number: int) -> bool:
        """LRUCacheLoRAModelManager.activate_adapter; False if it was in a slot already.

        Raises what torch and vLLM raise for weights that do not fit, KeyError for an adapter that
        is not in memory.
        """
        models = self._models
        active = models._active_adapters
        if number in active:
            active.touch(number)
            return False
        if len(active) >= models.lora_slots:
            active.remove_oldest()
        adapter = models._registered_adapters[number]
        slot = models.lora_index_to_id.index(None)
        active[number] = None
        models.lora_index_to_id[slot] = number
        self.write(slot, adapter)
        active.touch(number)
        return True

    def write(self, slot: int, adapter: Any) -> None:
        """Have the slot hold exactly this adapter."""
        if self._written_by_others():
            self._ranks = [None] * len(self._ranks)
            self._touched.clear()
        before = self._ranks[slot]
        # Should it fail half-way, nobody knows what the slot holds.
        self._ranks[slot] = None
        try:
            with self._telling(slot, adapter):
                self._ranks[slot] = self._copy(slot, adapter, before)
                self._write_others(slot, adapter)
        finally:
            self._versions = [stack._version for stack in self._stacks]

    @contextmanager
    def _telling(self, slot: int, adapter: Any) -> Iterator[None]:
        """Within it, our LoRA arithmetic knows which slot is written to, and up to which rank."""
        given = [lora.lora_a for lora in adapter.loras.values()]
        parts = [a for one in given for a in (one if isinstance(one, list) else [one])]
        most = max((int(a.shape[0]) for a in parts if a is not None), default=0)
        wrappers = getattr(self._models, "punica_wrapper_mapping", {}).values()
        with ExitStack() as stack:
            for wrapper in wrappers:
                if isinstance(wrapper, AdapterPunicaWrapper):
                    stack.enter_context(wrapper.writing(slot, most))
            yield

    def _copy(self, slot: int, adapter: Any, before: Ranks | None) -> Ranks:
        what: list[torch.Tensor] = []
        ranks: list[int] = []
        for name, slices in self._slices.items():
            for a, b in _weights(adapter, name, len(slices)):
                ranks.append(0 if a is None else int(a.shape[0]))
                if a is not None and b is not None:
                    what += (a, b)
        if what:
            torch._foreach_copy_(self._views(slot, tuple(ranks)), what)
        if before != tuple(ranks) and (stale := list(self._stale(slot, ranks, before))):
            torch._foreach_zero_(stale)
        return tuple(ranks)

    def _views(self, slot: int, ranks: Ranks) -> list[torch.Tensor]:
        """Where the weights of these ranks go; kept, since most adapters have the same ranks."""
        known = self._into.get(slot)
        if known is None or known[0] != ranks:
            views: list[torch.Tensor] = []
            for one, rank in zip(self._flat, ranks, strict=True):
                if rank:
                    views += (one.a[slot, 0, :rank], one.b[slot, 0, :, :rank])
            known = self._into[slot] = (ranks, views)
        return known[1]

    def _stale(self, slot: int, ranks: list[int], before: Ranks | None) -> Iterator[torch.Tensor]:
        for index, (one, rank) in enumerate(zip(self._flat, ranks, strict=True)):
            old = int(one.a.shape[-2]) if before is None else before[index]
            if old > rank:
                yield one.a[slot, 0, rank:old]
                yield one.b[slot, 0, :, rank:old]

    def _write_others(self, slot: int, adapter: Any) -> None:
        """By the modules' own methods; what is zero already is left alone."""
        known = slot in self._touched
        touched = self._touched.setdefault(slot, set(self._others))
        for name, module in self._others.items():
            weights = self._models._get_lora_layer_weights(adapter, name)
            if weights:
                touched.add(name)
                module.set_lora(slot, weights.lora_a, weights.lora_b)
            elif not known or name in touched:
                module.reset_lora(slot)
                touched.discard(name)

    def _written_by_others(self) -> bool:
        """Whether anybody else wrote to a stack: vLLM's warm-up, a test."""
        return self._versions != [stack._version for stack in self._stacks]


def _is_plain(module: Any, slices: int) -> bool:
    # As functions of the class: an instance's own, or a subclass's, is not known here.
    return (
        getattr(type(module), "set_lora", None) in _PLAIN
        and "set_lora" not in vars(module)
        and module.tp_size == 1
        and len(module.lora_a_stacked) == len(module.lora_b_stacked) == slices
    )


def _weights(
    adapter: Any, name: str, slices: int
) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """A and B of each slice; None where the adapter has none."""
    found: Mapping[str, Any] = adapter.loras
    lora = found.get(name)
    if lora is None:
        return [(None, None)] * slices
    if isinstance(lora.lora_a, torch.Tensor):
        return [(lora.lora_a, lora.lora_b)]
    return list(zip(lora.lora_a, lora.lora_b, strict=True))
