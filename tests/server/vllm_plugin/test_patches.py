"""The changes to vLLM's own classes: still possible on this version, and doing their job."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm
from vllm.lora.layers import LoRAMapping, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.utils import _get_lora_device
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from server.vllm_plugin import patches
from server.vllm_plugin.punica import AdapterPunicaWrapper


def test_the_installed_vllm_is_the_one_the_patches_are_for() -> None:
    patches.require_supported(vllm.__version__)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            GPUModelRunner._get_prompt_logprobs_dict,
            ["self", "hidden_states", "num_scheduled_tokens"],
        ),
        (LRUCacheWorkerLoRAManager._load_adapter, ["self", "lora_request"]),
        (LRUCacheWorkerLoRAManager.add_adapter, ["self", "lora_request"]),
        (_get_lora_device, ["base_layer"]),
        (VocabParallelEmbeddingWithLoRA.forward, ["self", "x"]),
        (
            LoRAModelRunnerMixin.set_active_loras,
            ["self", "input_batch", "num_scheduled_tokens", "num_sampled_tokens", "mapping_type"],
        ),
    ],
)
def test_what_is_replaced_still_takes_the_same_arguments(
    function: Any, parameters: list[str]
) -> None:
    assert list(inspect.signature(function).parameters) == parameters


def test_a_layer_that_gave_its_weights_to_onednn_is_on_the_cpu() -> None:
    """Stock vLLM asks None for its device; a layer with weights is asked as before."""
    layer = torch.nn.Linear(2, 2)
    found = patches.with_weights_given_away(_get_lora_device)
    assert found(layer) == torch.device("cpu")
    assert found(torch.nn.Linear(2, 2, device="meta")) == torch.device("meta")
    layer.weight = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        _get_lora_device(layer)
    assert found(layer) == torch.device("cpu")


def _runner(wrapper: AdapterPunicaWrapper, pending: dict[str, int]) -> SimpleNamespace:
    """What the patch reads of a model runner: three requests of 3, 1 and 2 rows."""
    manager = SimpleNamespace(punica_wrapper_mapping={"llm": wrapper})
    return SimpleNamespace(
        num_prompt_logprobs=pending,
        query_start_loc=SimpleNamespace(np=np.array([0, 3, 4, 6])),
        input_batch=SimpleNamespace(req_id_to_index={"a": 0, "b": 1, "c": 2}),
        lora_manager=SimpleNamespace(_adapter_manager=manager),
    )


def test_prompt_logits_are_computed_with_each_requests_own_slot() -> None:
    wrapper = AdapterPunicaWrapper(16, 8, torch.device("cpu"))
    # Requests a, b, c use the adapters with id 7 (slot 1), none, and 5 (slot 0).
    mapping = LoRAMapping((7, 7, 7, 0, 5, 5), (7, 0, 5), is_prefill=True)
    wrapper.update_metadata(mapping, [5, 7, None], 4, 100)
    a, b = torch.zeros(3, 1, 2, 4), torch.zeros(3, 1, 6, 2)
    a[:, 0, 0] = 1
    for slot in range(3):
        b[slot, 0, :, 0] = 10.0**slot
    pending = {"a": 1, "b": 1, "c": 1, "waiting": 1}
    runner = _runner(wrapper, pending)
    rows = {"a": 2, "b": 1, "c": 2}

    def original(
        self: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> dict[str, Any]:
        """vLLM's loop: logits of some of each request's rows; a and b are complete then."""
        results = {}
        for request in list(self.num_prompt_logprobs):
            if request in num_scheduled_tokens:
                logits = torch.zeros(rows[request], 6)
                wrapper.add_lora_logits(logits, hidden_states[: rows[request]], a, b, 1.0)
                results[request] = logits
        for request in {"a", "b"} & set(results):
            del self.num_prompt_logprobs[request]
        return results

    found = patches.one_request_at_a_time(original)(
        runner, torch.ones(6, 4), {"a": 3, "b": 1, "c": 2}
    )
    assert {request: float(logits.max()) for request, logits in found.items()} == {
        "a": 40.0,
        "b": 0.0,
        "c": 4.0,
    }
    assert runner.num_prompt_logprobs is pending
    assert pending == {"c": 1, "waiting": 1}


def test_only_the_first_of_steps_without_adapters_is_told_of() -> None:
    wrapper = AdapterPunicaWrapper(64, 8, torch.device("cpu"))
    manager = SimpleNamespace(punica_wrapper_mapping={"language_model": wrapper})
    runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
    told: list[tuple[int, ...]] = []

    def original(runner: Any, batch: Any, tokens: Any, sampled: Any = None) -> None:
        told.append(batch.rows)
        wrapper.update_metadata(LoRAMapping(batch.rows, batch.rows), [1, 2], 3, 100)

    patched = patches.unless_idle(original)
    for rows in ((0, 0), (0, 0, 0), (1, 0), (1, 0), (0,), (0, 0), (0, 2)):
        active = {number: None for number in rows if number}
        batch = SimpleNamespace(lora_id_to_lora_request=active, rows=rows)
        patched(runner, batch, np.ones(len(rows)), np.ones(len(rows)))
        assert [wrapper.slot_of_row(row) for row in range(len(rows))] == [r - 1 for r in rows]
    # The wrapper began without, and (0,) after (1, 0) has to take the adapter away.
    assert told == [(1, 0), (1, 0), (0,), (0, 2)]


def test_prompt_logits_of_an_engine_without_lora_are_left_to_vllm() -> None:
    runner = SimpleNamespace(num_prompt_logprobs={"a": 1})

    def original(self: Any, states: torch.Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
        return {"all": list(self.num_prompt_logprobs)}

    patched = patches.one_request_at_a_time(original)
    assert patched(runner, torch.ones(1, 1), {"a": 1}) == {"all": ["a"]}


def test_the_bookkeeping_survives_a_failure() -> None:
    wrapper = AdapterPunicaWrapper(16, 8, torch.device("cpu"))
    wrapper.update_metadata(LoRAMapping((0,) * 6, (0,) * 3, is_prefill=True), [None], 2, 100)
    pending = {"a": 1, "b": 1}
    runner = _runner(wrapper, pending)

    def original(self: Any, states: torch.Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
        raise MemoryError

    with pytest.raises(MemoryError):
        patches.one_request_at_a_time(original)(runner, torch.ones(6, 4), {"a": 3, "b": 1})
    assert runner.num_prompt_logprobs is pending
    assert wrapper._logits_slot is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("packed", [True, False])
def test_weights_that_are_not_finite_are_refused(value: float, packed: bool) -> None:
    good, bad = torch.ones(2, 4), torch.ones(2, 4)
    bad[1, 2] = value
    layers = {"layers.0.q_proj": SimpleNamespace(lora_a=good, lora_b=good)}
    adapter = SimpleNamespace(loras=layers)
    load = patches.finite_only(lambda manager, request: adapter)
    request = SimpleNamespace(lora_name="sha256-x")
    assert load(None, request) is adapter
    layers["layers.3.qkv_proj"] = SimpleNamespace(
        lora_a=good, lora_b=[good, None, bad] if packed else bad
    )
    with pytest.raises(ValueError, match=r"lora_B of layers\.3\.qkv_proj has NaN or Inf"):
        load(None, request)


def test_an_adapter_that_fails_half_way_is_taken_out_again() -> None:
    class Manager:
        def __init__(self) -> None:
            self.held: set[int] = set()

        def add(self, request: Any) -> bool:
            self.held.add(request.lora_int_id)
            if request.lora_int_id == 2:
                raise RuntimeError("The size of tensor a must match the size of tensor b")
            return True

        def remove_adapter(self, number: int) -> None:
            self.held.discard(number)

    manager = Manager()
    add = patches.all_or_nothing(Manager.add)
    assert add(manager, SimpleNamespace(lora_int_id=1))
    with pytest.raises(RuntimeError, match="must match"):
        add(manager, SimpleNamespace(lora_int_id=2))
    assert manager.held == {1}


@pytest.mark.parametrize(
    ("chosen", "kept"), [("uni", "uni"), ("mp", "mp"), ("ray", "ray"), (None, "mp")]
)
def test_a_single_worker_is_computed_in_the_core(chosen: str | None, kept: str) -> None:
    """vLLM makes `uni` into `mp` on a CPU; what was not `uni` is left to it."""
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend=chosen), seen=0
    )

    def original(cls: Any, config: Any) -> None:
        assert cls is CpuPlatform
        config.seen += 1
        if config.parallel_config.distributed_executor_backend in {"uni", None}:
            config.parallel_config.distributed_executor_backend = "mp"

    patches.keeping_one_process(original)(CpuPlatform, config)
    assert config.parallel_config.distributed_executor_backend == kept
    assert config.seen == 1


def test_vllm_still_makes_it_two_processes_on_a_cpu() -> None:
    """When this fails vLLM has learnt it: `compute_in_the_core` can go."""
    source = inspect.getsource(CpuPlatform.check_and_update_config)
    assert 'distributed_executor_backend = "mp"' in source
