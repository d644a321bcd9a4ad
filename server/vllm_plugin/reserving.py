"""Keeps a slot for every pinned adapter when vLLM's scheduler fills a batch.

vLLM 0.32's scheduler lets a batch have as many adapters as there are slots, whether or not some
are pinned (v1/core/sched/scheduler.py, "max_loras constraint"); so pins would give way to every
full batch. Here it counts the pinned ones as if they were in the batch. The engine core is told
which they are by `EngineCore.adapterctl_reserve`, a utility call like vLLM's own `pin_lora`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from vllm.config import SchedulerConfig

from server.vllm_plugin.finite import guarding

# Asked of every waiting request before the scheduler looks for its slot; False: not in this step.
_SEAM = "_handle_blocked_waiting_request"


def install() -> None:
    """Have vLLM's engine core use such a scheduler; the others never ask for one."""
    original = SchedulerConfig.get_scheduler_cls
    if not hasattr(original, "__wrapped__"):
        SchedulerConfig.get_scheduler_cls = with_reserved_slots(original)


def with_reserved_slots(original: Callable[[Any], type]) -> Callable[[Any], type]:
    """SchedulerConfig.get_scheduler_cls whose class heeds pins and ends what is not finite."""

    @functools.wraps(original)
    def get_scheduler_cls(config: Any) -> type:
        # Only the engine core comes here; importing it elsewhere takes seconds.
        from vllm.v1.engine.core import EngineCore

        EngineCore.adapterctl_reserve = reserve
        return guarding(reserving(original(config)))

    return get_scheduler_cls


def reserve(core: Any, adapters: Sequence[int]) -> None:
    """EngineCore.adapterctl_reserve: keep slots for exactly these of vLLM's adapter ids."""
    core.scheduler.adapterctl_pins = frozenset(adapters)


def reserving(scheduler: type) -> type:
    """A subclass of vLLM's scheduler that keeps a slot for each of `adapterctl_pins`."""
    if not hasattr(scheduler, _SEAM):
        # A scheduler of somebody else's: pins hold as far as the worker can keep them.
        return scheduler

    def handle_blocked_waiting_request(self: Any, request: Any) -> bool:
        if self.adapterctl_pins and not _leaves_room(self, request):
            return False
        return bool(getattr(scheduler, _SEAM)(self, request))

    members = {"adapterctl_pins": frozenset(), _SEAM: handle_blocked_waiting_request}
    return type(scheduler.__name__, (scheduler,), members)


def _leaves_room(scheduler: Any, request: Any) -> bool:
    """Whether its adapter has a slot, or gets one that no pinned adapter needs."""
    if request.lora_request is None or scheduler.lora_config is None:
        return True
    adapter: int = request.lora_request.lora_int_id
    used = {one.lora_request.lora_int_id for one in scheduler.running if one.lora_request}
    if adapter in used:
        return True
    most: int = scheduler.lora_config.max_loras
    return len(used | scheduler.adapterctl_pins | {adapter}) <= most
