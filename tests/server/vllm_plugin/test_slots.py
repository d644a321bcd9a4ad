"""Our copying into slots against vLLM's own `set_lora` and `reset_lora`, on vLLM's own layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.layers import (
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    VocabParallelEmbeddingWithLoRA,
)
from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager

from server.vllm_plugin.slots import SlotWriter

SLOTS, MAX_RANK, IN, OUT, VOCABULARY = 3, 6, 5, 4, 9
SINGLE, PACKED, EMBEDDING = "model.o_proj", "model.qkv_proj", "model.embed_tokens"
PARTS = ["model.q_proj", "model.k_proj", "model.v_proj"]


def layer(kind: Any, slices: int) -> Any:
    """A layer of vLLM's without a base layer: the stacks that its set_lora writes to."""
    made: Any = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.n_slices, made.tp_size = slices, 1
    made.lora_a_stacked = tuple(torch.zeros(SLOTS, 1, MAX_RANK, IN) for _ in range(slices))
    made.lora_b_stacked = tuple(torch.zeros(SLOTS, 1, OUT, MAX_RANK) for _ in range(slices))
    return made


def embedding() -> Any:
    made: Any = VocabParallelEmbeddingWithLoRA.__new__(VocabParallelEmbeddingWithLoRA)
    torch.nn.Module.__init__(made)
    made.lora_a_stacked = torch.zeros(SLOTS, VOCABULARY, MAX_RANK)
    made.lora_b_stacked = torch.zeros(SLOTS, 1, OUT, MAX_RANK)
    return made


class Models(LRUCacheLoRAModelManager):  # type: ignore[misc]  # vLLM is untyped here
    """vLLM's manager with one layer of each kind."""

    def __init__(self) -> None:
        self.lora_config = SimpleNamespace(max_loras=SLOTS, max_cpu_loras=20)
        self._registered_adapters = AdapterLRUCache(20, self.deactivate_adapter)
        self._active_adapters = AdapterLRUCache(SLOTS, self._deactivate_adapter)
        self.lora_index_to_id: list[int | None] = [None] * SLOTS
        self.is_pooling_model = False
        self.packed_modules = {PACKED: PARTS}
        self.modules = {
            EMBEDDING: embedding(),
            SINGLE: layer(ColumnParallelLinearWithLoRA, 1),
            PACKED: layer(MergedColumnParallelLinearWithLoRA, 3),
        }

    def stacks(self) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for module in self.modules.values():
            for stacks in (module.lora_a_stacked, module.lora_b_stacked):
                found += [stacks] if isinstance(stacks, torch.Tensor) else stacks
        return found


def pair(name: str, rank: int, wide: int = IN) -> LoRALayerWeights:
    return LoRALayerWeights(
        name, rank, rank, torch.randn(rank, wide), torch.randn(OUT, rank), scaling=1
    )


@st.composite
def adapters(draw: st.DrawFn) -> Any:
    """Any ranks, and any of the modules and slices left out."""
    rank = st.one_of(st.none(), st.integers(1, MAX_RANK))
    loras: dict[str, Any] = {}
    if (single := draw(rank)) is not None:
        loras[SINGLE] = pair(SINGLE, single)
    if (wide := draw(rank)) is not None:
        loras[EMBEDDING] = pair(EMBEDDING, wide, VOCABULARY)
    parts = [None if one is None else pair("part", one) for one in draw(st.tuples(*[rank] * 3))]
    if any(parts):
        loras[PACKED] = PackedLoRALayerWeights.pack(parts)
    return SimpleNamespace(loras=loras, get_lora=loras.get)


STEPS = st.lists(st.tuples(st.integers(1, 8), adapters()), min_size=1, max_size=12)


@settings(deadline=None)
@given(STEPS, st.booleans())
def test_slots_hold_what_vllm_would_have_put_there(
    steps: list[tuple[int, Any]], inference: bool
) -> None:
    ours, theirs = Models(), Models()
    writer = SlotWriter(ours)
    for number, adapter in steps:
        adapter.id = number
        for models in (ours, theirs):
            if number not in models._registered_adapters:
                models._registered_adapters[number] = adapter
        with torch.inference_mode(inference):
            # As vLLM's worker does it, within inference mode; the stacks are ordinary tensors.
            assert writer.activate(number) is theirs.activate_adapter(number)
        assert ours.lora_index_to_id == theirs.lora_index_to_id
        assert list(ours._active_adapters.order) == list(theirs._active_adapters.order)
        for one, other in zip(ours.stacks(), theirs.stacks(), strict=True):
            assert torch.equal(one, other)


def test_every_write_is_seen_in_the_version() -> None:
    """Whoever lays the weights out anew looks there."""
    models = Models()
    writer = SlotWriter(models)
    with torch.inference_mode():
        for number in (1, 2, 3, 4):
            rank = 1 + number
            loras = {
                SINGLE: pair(SINGLE, rank),
                PACKED: PackedLoRALayerWeights.pack([pair(part, rank) for part in PARTS]),
            }
            adapter = SimpleNamespace(id=number, loras=loras, get_lora=loras.get)
            models._registered_adapters[number] = adapter
            linear = [s for s in models.stacks() if s.shape[1] == 1]
            linear = [s for s in linear if s is not models.modules[EMBEDDING].lora_b_stacked]
            before = [stack._version for stack in linear]
            writer.activate(number)
            assert all(s._version > old for s, old in zip(linear, before, strict=True))


def test_what_others_wrote_meanwhile_does_not_stay() -> None:
    models = Models()
    writer = SlotWriter(models)
    loras = {SINGLE: pair(SINGLE, 2)}
    for number in (1, 2):
        models._registered_adapters[number] = SimpleNamespace(
            id=number, loras=loras, get_lora=loras.get
        )
    writer.activate(1)
    slot = models.lora_index_to_id.index(1)
    models.modules[PACKED].lora_a_stacked[1][slot] = 7
    models.remove_adapter(1)
    writer.activate(2)
    assert models.lora_index_to_id.index(2) == slot
    assert not models.modules[PACKED].lora_a_stacked[1].any()
    assert torch.equal(models.modules[SINGLE].lora_a_stacked[0][slot, 0, :2], loras[SINGLE].lora_a)


def test_after_a_failure_nothing_of_it_stays_in_the_slot() -> None:
    models = Models()
    writer = SlotWriter(models)
    good, bad = {SINGLE: pair(SINGLE, 2)}, {SINGLE: pair(SINGLE, MAX_RANK, IN + 1)}
    bad[PACKED] = PackedLoRALayerWeights.pack([pair(part, 3) for part in PARTS])
    for number, loras in ((1, bad), (2, good)):
        models._registered_adapters[number] = SimpleNamespace(
            id=number, loras=loras, get_lora=loras.get
        )
    with pytest.raises(RuntimeError):
        writer.activate(1)
    models.remove_adapter(1)
    writer.activate(2)
    expected = Models()
    slot = models.lora_index_to_id.index(2)
    expected.modules[SINGLE].set_lora(slot, good[SINGLE].lora_a, good[SINGLE].lora_b)
    for one, other in zip(models.stacks(), expected.stacks(), strict=True):
        assert torch.equal(one, other)


def test_shapes_are_those_of_an_adapters_own_names() -> None:
    assert SlotWriter(Models()).shapes() == dict.fromkeys([SINGLE, *PARTS], (IN, OUT))
