"""vLLM's own adapter caches with our watch on them: what they hold is told, and pins hold."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import AdapterLRUCache, LRUCacheLoRAModelManager
from vllm.lora.punica_wrapper.utils import convert_mapping
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
from vllm.v1.worker.cpu_worker import CPUWorker

from server.engine.command import engine_command
from server.vllm_plugin import WORKER_EXTENSION
from server.vllm_plugin.residency import ResidentAdapters, Watch


class Models(LRUCacheLoRAModelManager):  # type: ignore[misc]  # vLLM is untyped here
    """vLLM's manager of a model without layers: caches and slots, nothing to compute."""

    def __init__(self, slots: int, capacity: int):
        self.lora_config = SimpleNamespace(
            max_loras=slots, max_cpu_loras=capacity, max_lora_rank=16
        )
        self._registered_adapters = AdapterLRUCache(capacity, self.deactivate_adapter)
        self._active_adapters = AdapterLRUCache(slots, self._deactivate_adapter)
        self.lora_index_to_id: list[int | None] = [None] * slots
        self.modules: dict[str, Any] = {}
        self.packed_modules: dict[str, list[str]] = {}
        self.is_pooling_model = False

    def _add_adapter(self, lora: Any) -> None:
        self._registered_adapters[lora.id] = lora


class Manager(LRUCacheWorkerLoRAManager):  # type: ignore[misc]  # vLLM is untyped here
    """vLLM's worker manager whose adapters come from nowhere."""

    def __init__(self, slots: int, capacity: int):
        self._adapter_manager = Models(slots, capacity)
        self.read: list[str] = []
        self.unreadable: set[str] = set()

    def _load_adapter(self, lora_request: LoRARequest) -> Any:
        if lora_request.lora_name in self.unreadable:
            raise ValueError("gone")
        self.read.append(lora_request.lora_name)
        return SimpleNamespace(id=lora_request.lora_int_id, loras={})

    def in_slots(self) -> set[int]:
        return {number for number in self._adapter_manager.lora_index_to_id if number is not None}


def request(number: int) -> LoRARequest:
    return LoRARequest(f"adapter-{number}", number, "/nowhere")


def batch(manager: Manager, numbers: Iterable[int]) -> None:
    """A step with these adapters, each of which has to have a slot."""
    manager._apply_adapters([request(number) for number in numbers])


def test_stock_vllm_takes_a_slot_from_a_full_batch_once_one_adapter_is_pinned() -> None:
    """Then a row of the batch has no slot, and the step dies with the engine."""
    manager = Manager(slots=2, capacity=4)
    batch(manager, [1])
    manager.pin_adapter(1)
    batch(manager, [2, 3])
    assert not {2, 3} <= manager.in_slots()
    mapping = LoRAMapping((2, 3), (2, 3), is_prefill=True)
    slots = manager._adapter_manager.lora_index_to_id
    with pytest.raises(KeyError):
        convert_mapping(mapping, slots, 3, 100, torch.device("cpu"))


def test_a_pin_gives_way_to_a_batch_that_needs_every_slot_and_comes_back() -> None:
    manager = Manager(slots=2, capacity=4)
    watch = Watch(manager)
    assert watch.pin([request(1)]) == ["adapter-1"]
    batch(manager, [2, 3])
    assert manager.in_slots() == {2, 3}
    assert watch.residency()["pinned"] == []
    batch(manager, [2])
    assert manager.in_slots() == {1, 2}
    assert watch.residency()["pinned"] == ["adapter-1"]


BATCHES = st.lists(st.sets(st.integers(1, 12), max_size=4), min_size=1, max_size=30)


@given(BATCHES, st.lists(st.integers(1, 12), max_size=3, unique=True), st.integers(4, 8))
def test_whoever_is_in_a_batch_has_a_slot_and_pins_stay_where_there_is_room(
    batches: list[set[int]], pins: list[int], capacity: int
) -> None:
    manager = Manager(slots=4, capacity=capacity)
    watch = Watch(manager)
    watch.pin([request(number) for number in pins])
    for numbers in batches:
        batch(manager, numbers)
        assert numbers <= manager.in_slots()
        if len(numbers | set(pins)) <= 4:
            assert set(pins) <= manager.in_slots()
        told = watch.residency()
        assert {f"adapter-{n}" for n in manager.in_slots()} == set(told["slots"]) - {None}
        assert set(told["slots"]) - {None} <= set(told["cpu"])
        assert len(told["cpu"]) <= capacity
        # Whatever was read and is gone was evicted.
        assert told["loads"] == len(manager.read) == len(told["cpu"]) + told["evictions"]
        assert sum(told["loaded"].values()) == told["loads"]
        assert set(told["pinned"]) <= {f"adapter-{n}" for n in pins}


@given(BATCHES)
def test_without_pins_the_caches_do_what_they_always_did(batches: list[set[int]]) -> None:
    watched, plain = Manager(slots=4, capacity=6), Manager(slots=4, capacity=6)
    Watch(watched)
    for numbers in batches:
        batch(watched, sorted(numbers))
        batch(plain, sorted(numbers))
        assert watched._adapter_manager.lora_index_to_id == plain._adapter_manager.lora_index_to_id
        assert watched.read == plain.read


def test_pinning_others_lets_go_of_those_before() -> None:
    manager = Manager(slots=3, capacity=3)
    watch = Watch(manager)
    watch.pin([request(1), request(2)])
    assert watch.pin([request(2)]) == ["adapter-2"]
    batch(manager, [3])
    batch(manager, [4])
    assert manager.in_slots() == {2, 3, 4}
    assert watch.pin([]) == []
    batch(manager, [5])
    assert 2 not in manager.in_slots()


def test_one_slot_is_never_pinned() -> None:
    manager = Manager(slots=3, capacity=5)
    watch = Watch(manager)
    assert watch.pin([request(n) for n in (1, 2, 3)]) == ["adapter-1", "adapter-2"]


def test_a_pinned_adapter_that_cannot_be_read_again_costs_no_batch_its_step() -> None:
    manager = Manager(slots=2, capacity=2)
    watch = Watch(manager)
    watch.pin([request(1)])
    # Memory for no more than the batch: the pinned one has to leave it, too.
    manager.unreadable.add("adapter-1")
    batch(manager, [2, 3])
    batch(manager, [2])
    assert manager.in_slots() >= {2}
    assert watch.residency()["pinned"] == []


def test_the_worker_gets_methods_that_it_does_not_have() -> None:
    """vLLM refuses an extension whose names it knows already."""
    ours = {name for name in dir(ResidentAdapters) if not name.startswith("__")}
    assert ours == {f"adapterctl_{what}" for what in ("watch", "residency", "pin", "listen")}
    assert not any(hasattr(CPUWorker, name) for name in ours)


def test_a_worker_without_adapters_says_so() -> None:
    class Worker(ResidentAdapters):
        model_runner = SimpleNamespace()

    assert Worker().adapterctl_watch() is False


def test_a_worker_is_watched_once() -> None:
    class Worker(ResidentAdapters):
        model_runner = SimpleNamespace(lora_manager=Manager(slots=2, capacity=2))

    worker = Worker()
    assert worker.adapterctl_watch()
    batch(worker.model_runner.lora_manager, [1])
    assert worker.adapterctl_watch()
    assert worker.adapterctl_residency()["loads"] == 1
    assert worker.adapterctl_pin([("adapter-1", 1, "/nowhere")]) == ["adapter-1"]


def test_the_engine_is_told_of_the_extension() -> None:
    module, _, name = WORKER_EXTENSION.rpartition(".")
    assert ResidentAdapters.__module__ == module
    assert ResidentAdapters.__name__ == name
    assert WORKER_EXTENSION in inspect.getsource(engine_command)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (WorkerLoRAManager._load_adapter, ["self", "lora_request"]),
        (LRUCacheWorkerLoRAManager._apply_adapters, ["self", "lora_requests"]),
        (LRUCacheLoRAModelManager.activate_adapter, ["self", "lora_id"]),
        (LRUCacheLoRAModelManager.remove_oldest_adapter, ["self"]),
        (LRUCacheLoRAModelManager.pin_adapter, ["self", "lora_id"]),
    ],
)
def test_what_is_watched_still_takes_the_same_arguments(
    function: Any, parameters: list[str]
) -> None:
    assert list(inspect.signature(function).parameters) == parameters
