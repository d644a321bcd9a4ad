"""Every change this package makes to vLLM, in one place, each for vLLM 0.32 and with its reason.

On CPU only: elsewhere vLLM's own LoRA kernels run, and nothing here applies. On another version
than 0.32 nothing is changed and `install` raises, so that the engine does not start: half of
these changes would be worse than none. `docs/adr/0004-vllm-plugin.md` says when each can go.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import vllm
from vllm.platforms import current_platform

from server.vllm_plugin import budget, compiled_ops, finite, forking, mixtures

logger = logging.getLogger("vllm.adapterctl.patches")

SUPPORTED = "0.32."
# On a LoRAModel whose weights `reading.py` looked through; whether all shapes are the modules'.
PROVED = "adapterctl_proved"
WRAPPER = "server.vllm_plugin.punica.AdapterPunicaWrapper"


def install() -> None:
    """Change what must be changed before an engine is built; in every vLLM process.

    Raises RuntimeError for a vLLM version that these changes were not made for.
    """
    if not current_platform.is_cpu():
        return
    require_supported(vllm.__version__)
    _replace_lora_arithmetic()
    _zero_new_cache_blocks()
    finite.install()
    mixtures.install()
    compiled_ops.install()
    budget.install()


def install_in_worker() -> None:
    """Change the classes that only workers with LoRA have; called when the wrapper is made.

    Not from `install`: importing them takes seconds in processes that never use them.
    """
    require_supported(vllm.__version__)
    from server.vllm_plugin import layers

    layers.install()
    _tell_of_adapters_only()
    _route_prompt_logits()
    _refuse_unusable_adapters()
    _find_the_device_of_int8_layers()
    mixtures.install_in_worker()


def start_forked_processes() -> None:
    """vLLM starts engine core and worker by `spawn`, and each imports for ten seconds.

    Where a process with these imports waits already (`forking`), it is taken. Called by `warm`
    only, before `install`, in a process that has imported vLLM and done nothing else.
    """
    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    original = utils.get_mp_context
    ours = forking.ForkedContext()

    def get_mp_context() -> Any:
        chosen = original()
        return ours if chosen.get_start_method() == "spawn" else chosen

    utils.get_mp_context = multiproc_executor.get_mp_context = get_mp_context


def compute_in_the_core(bind: Callable[[], None]) -> None:
    """A single worker is the engine core's process itself, instead of one beside it.

    `bind` is called in it before the model is loaded.

    vLLM 0.32 does so everywhere but on CPUs, where it needs a new process to give OpenMP its
    environment (vllm/platforms/cpu.py). `warm` has it from the start. Saved are two messages a
    step between processes that wait for each other, one of them spinning on a core that the
    other computes with.
    """
    platform = type(current_platform)
    original = platform.check_and_update_config.__func__
    platform.check_and_update_config = classmethod(keeping_one_process(original))
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    make = UniProcExecutor._init_executor

    @functools.wraps(make)
    def init_executor(self: Any) -> None:
        bind()
        make(self)

    UniProcExecutor._init_executor = init_executor


def keeping_one_process(original: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """CpuPlatform.check_and_update_config that leaves vLLM's own choice for one worker alone.

    What the user chose (`--distributed-executor-backend`) and several workers stay as they are.
    """

    def check_and_update_config(cls: Any, config: Any) -> None:
        alone = config.parallel_config.distributed_executor_backend == "uni"
        original(cls, config)
        if alone and config.parallel_config.distributed_executor_backend == "mp":
            config.parallel_config.distributed_executor_backend = "uni"

    return check_and_update_config


def require_supported(version: str) -> None:
    """Raises RuntimeError unless `version` is one that these changes were made for."""
    if not version.startswith(SUPPORTED):
        message = (
            f"adapterctl's CPU patches are for vLLM {SUPPORTED}*, this is {version}: the engine "
            "would mix adapters up; install the pinned version"
        )
        logger.error(message)
        raise RuntimeError(message)


def _replace_lora_arithmetic() -> None:
    """vLLM 0.32 indexes LoRA weights with -1 for rows without adapter: they get the last slot's.

    Upstream: vLLM 48421 and 49656 (pull requests, open). Its torch code is slow as well.
    """

    def get_punica_wrapper(cls: type) -> str:
        return WRAPPER

    type(current_platform).get_punica_wrapper = classmethod(get_punica_wrapper)


def _zero_new_cache_blocks() -> None:
    """A NaN that one request leaves in a KV cache block spoils whoever gets the block next.

    vLLM 0.32's CPU attention reads a block's unused tail with weight 0, and 0 * NaN is NaN.
    vLLM zeroes new blocks for hybrid models (its issue 35219); here it does so for all.
    One block is about 3 MB for a 135M model, zeroed once per 128 tokens.
    """
    from vllm.v1.kv_cache_interface import KVCacheConfig

    KVCacheConfig.needs_kv_cache_zeroing = property(lambda self: True)


def _tell_of_adapters_only() -> None:
    """vLLM 0.32 makes a mapping of all rows for every step, also where no request has an adapter:
    for a prompt of 2,048 tokens a Python list of as many."""
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    if not hasattr(LoRAModelRunnerMixin.set_active_loras, "__wrapped__"):
        LoRAModelRunnerMixin.set_active_loras = unless_idle(LoRAModelRunnerMixin.set_active_loras)


def unless_idle(original: Callable[..., None]) -> Callable[..., None]:
    """LoRAModelRunnerMixin.set_active_loras that does nothing for the second of two steps without
    adapters. Which of our wrapper's rows those would be, it does not ask then."""

    @functools.wraps(original)
    def patched(runner: Any, input_batch: Any, *arguments: Any, **options: Any) -> None:
        if not input_batch.lora_id_to_lora_request:
            wrappers = _wrappers(runner)
            if wrappers and all(wrapper.idle for wrapper in wrappers):
                return
        original(runner, input_batch, *arguments, **options)

    return patched


def _route_prompt_logits() -> None:
    """`prompt_logprobs` (and `echo` with `logprobs`) kills the engine core of a LoRA engine.

    vLLM 0.32 computes logits for all prompt rows of a request, but the LoRA logits layer has
    one sampler index per request: the shapes differ and the step dies (compare vLLM 29955).
    Here the requests are done one at a time, each with its own slot for all of its rows.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._get_prompt_logprobs_dict
    if hasattr(original, "__wrapped__"):
        return
    GPUModelRunner._get_prompt_logprobs_dict = one_request_at_a_time(original)


def one_request_at_a_time(
    original: Callable[[Any, torch.Tensor, dict[str, int]], dict[str, Any]],
) -> Callable[[Any, torch.Tensor, dict[str, int]], dict[str, Any]]:
    """GPUModelRunner._get_prompt_logprobs_dict that tells the LoRA wrapper whose rows these are.

    `original` goes through `num_prompt_logprobs` and removes the requests it finished; it is
    given one request at a time, and what it removes is removed from the real dictionary.
    """

    @functools.wraps(original)
    def patched(
        runner: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]
    ) -> dict[str, Any]:
        pending = runner.num_prompt_logprobs
        wrappers = _wrappers(runner)
        if not pending or not wrappers:
            return original(runner, hidden_states, num_scheduled_tokens)
        found: dict[str, Any] = {}
        try:
            for request_id in [r for r in pending if r in num_scheduled_tokens]:
                row = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[request_id]])
                runner.num_prompt_logprobs = {request_id: pending[request_id]}
                with wrappers[0].logits_of_slot(wrappers[0].slot_of_row(row)):
                    found.update(original(runner, hidden_states, num_scheduled_tokens))
                if request_id not in runner.num_prompt_logprobs:
                    del pending[request_id]
        finally:
            runner.num_prompt_logprobs = pending
        return found

    return patched


def _wrappers(runner: Any) -> list[Any]:
    """Our LoRA wrappers in a model runner; none if LoRA is off."""
    from server.vllm_plugin.punica import AdapterPunicaWrapper

    manager = getattr(getattr(runner, "lora_manager", None), "_adapter_manager", None)
    mapping = getattr(manager, "punica_wrapper_mapping", {})
    return [wrapper for wrapper in mapping.values() if isinstance(wrapper, AdapterPunicaWrapper)]


def _find_the_device_of_int8_layers() -> None:
    """A base in w8a8 ends an engine with LoRA at its start, on CPUs without AMX.

    There vLLM 0.32 gives int8 weights to oneDNN and leaves None in their place
    (kernels/linear/scaled_mm/cpu.py), of which the LoRA layer then asks the device
    (lora/layers/utils.py). On a CPU there is only one.
    """
    from vllm.lora.layers import base_linear

    if not hasattr(base_linear._get_lora_device, "__wrapped__"):
        base_linear._get_lora_device = with_weights_given_away(base_linear._get_lora_device)


def with_weights_given_away(
    original: Callable[[Any], torch.device],
) -> Callable[[Any], torch.device]:
    """vLLM's _get_lora_device that takes a layer whose `weight` is None."""

    @functools.wraps(original)
    def patched(base_layer: Any) -> torch.device:
        if getattr(base_layer, "weight", base_layer) is None:
            return torch.device("cpu")
        return original(base_layer)

    return patched


def _refuse_unusable_adapters() -> None:
    """Two ways in which vLLM 0.32 keeps an adapter that it should not have.

    A NaN or Inf weight is loaded with "Success" and answers nonsense. And an adapter whose
    activation fails (a tensor too large) stays in the caches half-written, in a slot that
    others need. Both are refused here, and nothing of them stays; the request gets a 400.
    """
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager

    if hasattr(Manager.add_adapter, "__wrapped__"):
        return
    Manager._load_adapter = finite_only(Manager._load_adapter)
    Manager.add_adapter = all_or_nothing(Manager.add_adapter)


def finite_only(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """WorkerLoRAManager._load_adapter that raises ValueError for weights that are not finite."""

    @functools.wraps(original)
    def patched(manager: Any, lora_request: Any) -> Any:
        adapter = original(manager, lora_request)
        if hasattr(adapter, PROVED):
            return adapter
        for name, layer in adapter.loras.items():
            for side, weights in (("A", layer.lora_a), ("B", layer.lora_b)):
                parts = weights if isinstance(weights, list) else [weights]
                if not all(bool(torch.isfinite(p).all()) for p in parts if p is not None):
                    raise ValueError(
                        f"adapter {lora_request.lora_name}: lora_{side} of {name} has NaN or Inf"
                    )
        return adapter

    return patched


def all_or_nothing(original: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """LRUCacheWorkerLoRAManager.add_adapter that leaves nothing behind when it raises."""

    @functools.wraps(original)
    def patched(manager: Any, lora_request: Any) -> bool:
        try:
            return original(manager, lora_request)
        except BaseException:
            manager.remove_adapter(lora_request.lora_int_id)
            raise

    return patched
