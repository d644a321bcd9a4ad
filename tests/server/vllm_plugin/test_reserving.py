"""vLLM's scheduler with our question before it lets an adapter into a batch."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from vllm.config import SchedulerConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from server.vllm_plugin import reserving

SLOTS = 4


def request(adapter: int | None) -> SimpleNamespace:
    lora = None if adapter is None else SimpleNamespace(lora_int_id=adapter)
    return SimpleNamespace(lora_request=lora)


class Plain:
    """The part of vLLM's scheduler that fills a batch, with its own limit on adapters."""

    lora_config = SimpleNamespace(max_loras=SLOTS)

    def __init__(self) -> None:
        self.running: list[Any] = []

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        return True

    def fill(self, waiting: list[Any]) -> list[Any]:
        """As in Scheduler.schedule; what has to wait on."""
        skipped = []
        for one in waiting:
            used = {it.lora_request.lora_int_id for it in self.running if it.lora_request}
            if not self._handle_blocked_waiting_request(one) or (
                one.lora_request and len(used) == SLOTS and one.lora_request.lora_int_id not in used
            ):
                skipped.append(one)
            else:
                self.running.append(one)
        return skipped


def test_the_seam_is_still_where_it_was() -> None:
    seam = Scheduler._handle_blocked_waiting_request
    assert list(inspect.signature(seam).parameters) == ["self", "request"]
    assert issubclass(AsyncScheduler, Scheduler)
    source = inspect.getsource(Scheduler.schedule)
    asked = source.index("self._handle_blocked_waiting_request(request)")
    assert asked < source.index("len(scheduled_loras) == self.lora_config.max_loras")


def test_the_engine_core_gets_the_scheduler_that_it_would_have_had() -> None:
    chosen: Any = reserving.with_reserved_slots(lambda config: AsyncScheduler)(SchedulerConfig)
    assert issubclass(chosen, AsyncScheduler)
    assert chosen.adapterctl_pins == frozenset()
    core = SimpleNamespace(scheduler=SimpleNamespace())
    EngineCore.adapterctl_reserve(core, [3, 5])
    assert core.scheduler.adapterctl_pins == {3, 5}


def test_a_scheduler_of_another_kind_is_left_alone() -> None:
    class Other:
        pass

    assert reserving.reserving(Other) is Other


@given(
    st.lists(st.none() | st.integers(1, 9), max_size=12),
    st.frozensets(st.integers(1, 9), max_size=SLOTS - 1),
)
def test_pinned_adapters_always_find_a_slot(
    waiting: list[int | None], pins: frozenset[int]
) -> None:
    scheduler = reserving.reserving(Plain)()
    scheduler.adapterctl_pins = pins
    skipped = scheduler.fill([request(adapter) for adapter in waiting])
    used = {it.lora_request.lora_int_id for it in scheduler.running if it.lora_request}
    assert len(used | pins) <= SLOTS
    # Nobody waits who needs no slot, has one, or would be the last to fit.
    for one in skipped:
        assert one.lora_request is not None
        assert one.lora_request.lora_int_id not in used | pins
        assert len(used | pins) == SLOTS


@given(st.lists(st.none() | st.integers(1, 9), max_size=12))
def test_without_pins_it_is_vllms_own(waiting: list[int | None]) -> None:
    requests = [request(adapter) for adapter in waiting]
    ours, plain = reserving.reserving(Plain)(), Plain()
    assert ours.fill(requests) == plain.fill(requests)
    assert ours.running == plain.running


def test_without_adapters_there_is_nothing_to_keep() -> None:
    scheduler = reserving.reserving(Plain)()
    scheduler.adapterctl_pins = frozenset({1})
    scheduler.lora_config = None
    assert scheduler._handle_blocked_waiting_request(request(2))
