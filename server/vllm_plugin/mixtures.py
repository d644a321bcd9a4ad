"""Mixtures of experts on a CPU engine with LoRA: served at all, their experts without LoRA.

vLLM 0.32 picks its Triton kernels for the experts wherever LoRA is enabled. A CPU has none, so the
engine starts and dies at its first token, adapter or not ("module 'triton.language' has no
attribute 'float32'"). Here the experts keep their CPU kernels, which know no LoRA; attention,
shared experts and routers take adapters as everywhere. An adapter for the experts themselves is
refused: vLLM would load it and answer as if it were not there.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CONFIG = "vllm.model_executor.layers.fused_moe.config"


def install() -> None:
    """Before a model is built. Its module is not imported here: that takes seconds, everywhere."""
    after_import(_CONFIG, _keep_cpu_kernels)


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Call `act` with the module `name`: now if it is imported, else once it is."""
    if name in sys.modules:
        act(sys.modules[name])
    elif not any(isinstance(it, _AfterImport) and it.name == name for it in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, act))


def install_in_worker() -> None:
    """Before the model's layers are wrapped for LoRA."""
    from vllm.lora.layers import FusedMoE3DWithLoRA, FusedMoEWithLoRA
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager

    for layer in (FusedMoEWithLoRA, FusedMoE3DWithLoRA):
        layer.can_replace_layer = classmethod(_never)
    if not hasattr(Manager._load_adapter, "refuses_experts"):
        Manager._load_adapter = without_experts(Manager._load_adapter)


def without_experts(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """WorkerLoRAManager._load_adapter that raises ValueError for a LoRA on experts."""

    @functools.wraps(original)
    def patched(manager: Any, lora_request: Any) -> Any:
        adapter = original(manager, lora_request)
        for name in adapter.loras:
            if f".{name}.".find(".experts.") >= 0:
                raise ValueError(
                    f"adapter {lora_request.lora_name}: a CPU engine applies no LoRA to {name}"
                )
        return adapter

    patched.refuses_experts = True  # type: ignore[attr-defined]
    return patched


def _never(cls: type, *arguments: Any, **named: Any) -> bool:
    return False


def _keep_cpu_kernels(module: ModuleType) -> None:
    config = module.FusedMoEConfig
    original = config.__post_init__
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def patched(self: Any) -> None:
        self.is_lora_enabled = False
        original(self)

    config.__post_init__ = patched


class _AfterImport(MetaPathFinder):
    """Calls `act` with the module `name` once it is imported."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]):
        self.name = name
        self._act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            run = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                self._act(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
