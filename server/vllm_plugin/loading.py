"""Puts our reading and our copying into the place of vLLM's, in one worker's manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.vllm_plugin.reading import Reader
from server.vllm_plugin.slots import SlotWriter


def install(manager: Any) -> None:
    """`manager`: an LRUCacheWorkerLoRAManager that has no adapters yet."""
    models = manager._adapter_manager
    if not models.is_pooling_model:
        # Adapters of the others may name modules otherwise, or bring a whole head (vLLM's
        # _get_module_to_save_weights): rare, and left to vLLM.
        writer = SlotWriter(models)
        manager._lora_model_cls = Reader(writer.shapes(), int(models.lora_config.max_lora_rank))
        models.activate_adapter = writer.activate
    manager.add_adapter = of_resident(manager, manager.add_adapter)


def of_resident(manager: Any, original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """LRUCacheWorkerLoRAManager.add_adapter that does not copy the list of all adapters first.

    vLLM 0.32 calls it for each adapter of a batch in every step, and asks `list_adapters`: with
    1,000 in memory that is half a millisecond each.
    """
    models = manager._adapter_manager

    def add_adapter(request: Any) -> bool:
        number = request.lora_int_id
        if request.load_inplace or number not in models._registered_adapters:
            return original(request)
        models._registered_adapters.touch(number)
        if number in models._active_adapters:
            models._active_adapters.touch(number)
            return True
        # With what is around it for an adapter that cannot be activated.
        return original(request)

    return add_adapter
