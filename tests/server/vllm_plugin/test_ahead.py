"""Both sides of reading ahead over a real socket: the worker's thread and the API server's orders.

The thread reads when the test lets it, so that nothing here depends on how fast anything is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from server.vllm_plugin.ahead import KEPT, Ahead
from server.vllm_plugin.ordering import Orders, before_requests, instead_of_loading
from server.vllm_plugin.patches import PROVED
from server.vllm_plugin.residency import Watch
from tests.server.vllm_plugin.test_residency import Manager, batch, request


def test_what_is_wrapped_still_takes_what_it_is_given() -> None:
    assert "lora_request" in inspect.signature(AsyncLLM.add_request).parameters
    assert list(inspect.signature(AsyncLLM.add_lora).parameters) == ["self", "lora_request"]
    options = list(inspect.signature(LoRAModel.from_local_checkpoint).parameters)
    assert options[:3] == ["lora_dir", "expected_lora_modules", "peft_helper"]
    assert {
        "lora_model_id",
        "dtype",
        "weights_mapper",
        "skip_prefixes",
        "moe_ep_spec",
    } <= set(options)
    assert "self.add_request(" in inspect.getsource(AsyncLLM.generate)
    assert "lora_request=lora_request" in inspect.getsource(AsyncLLM.generate)


class Disk:
    """Where adapters are read from; `closed`, a read waits until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.read: list[int] = []
        self.proved = True
        self.resident: set[int] = set()

    def __call__(self, wanted: LoRARequest) -> Any:
        self.begun.set()
        assert self.open.wait(20)
        if wanted.lora_name == "adapter-13":
            raise ValueError("it is damaged")
        self.read.append(wanted.lora_int_id)
        return SimpleNamespace(id=wanted.lora_int_id, **{PROVED: self.proved})


@contextlib.asynccontextmanager
async def reading(disk: Disk) -> AsyncIterator[tuple[Ahead, Orders]]:
    ahead = Ahead(disk, disk.resident.__contains__, lambda *_: None)
    orders = Orders()
    await orders.connect([ahead.listen()])
    try:
        yield ahead, orders
    finally:
        disk.open.set()
        await orders.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_was_read_is_taken_over_at_once() -> None:
    disk = Disk()
    async with reading(disk) as (ahead, orders):
        assert await orders.read(request(1))
        assert ahead.ready() == {1: "adapter-1"}
        # It is there: nobody is asked again.
        assert await orders.read(request(1))
        taken = ahead.take(1)
        assert taken is not None
        assert (taken[0].id, taken[1]) == (1, True)
        assert ahead.take(1) is None
        assert disk.read == [1]


async def test_a_step_waits_for_what_is_being_read() -> None:
    disk = Disk()
    disk.open.clear()
    async with reading(disk) as (ahead, orders):
        asked = asyncio.create_task(orders.read(request(1)))
        assert await asyncio.to_thread(disk.begun.wait, 20)
        step = asyncio.create_task(asyncio.to_thread(ahead.take, 1))
        # What is not being read it does not wait for.
        assert await asyncio.to_thread(ahead.take, 2) is None
        assert not step.done()
        disk.open.set()
        taken = await step
        assert taken is not None
        assert (taken[0].id, taken[1]) == (1, False)
        assert await asked
        assert disk.read == [1]


async def test_many_who_ask_for_one_are_one_order() -> None:
    disk = Disk()
    async with reading(disk) as (_, orders):
        assert all(await asyncio.gather(*(orders.read(request(1)) for _ in range(9))))
        assert disk.read == [1]


async def test_who_leaves_does_not_end_it_for_the_others() -> None:
    disk = Disk()
    disk.open.clear()
    async with reading(disk) as (_, orders):
        first, second = (asyncio.create_task(orders.read(request(1))) for _ in range(2))
        assert await asyncio.to_thread(disk.begun.wait, 20)
        first.cancel()
        disk.open.set()
        assert await second


async def test_what_cannot_be_read_is_refused_and_hurts_nobody() -> None:
    disk = Disk()
    async with reading(disk) as (ahead, orders):
        for _ in range(2):
            with pytest.raises(VLLMValidationError, match="could not be loaded: it is damaged"):
                await orders.read(request(13))
        assert ahead.take(13) is None
        assert await orders.read(request(2))


async def test_what_only_vllm_can_judge_is_said_to_be_so() -> None:
    disk = Disk()
    disk.proved = False
    async with reading(disk) as (_, orders):
        loaded = []

        async def load(wanted: LoRARequest) -> bool:
            loaded.append(wanted.lora_int_id)
            return True

        assert await instead_of_loading(load, orders)(request(1))
        disk.proved = True
        assert await instead_of_loading(load, orders)(request(2))
        assert loaded == [1]


async def test_what_the_worker_has_is_not_read() -> None:
    disk = Disk()
    disk.resident.add(1)
    async with reading(disk) as (_, orders):
        assert await orders.read(request(1))
        assert disk.read == []


async def test_what_went_is_read_again() -> None:
    disk = Disk()
    async with reading(disk) as (ahead, orders):
        assert await orders.read(request(1))
        ahead.take(1)
        ahead.gone(1)
        await until(lambda: not orders._links[0].there)
        assert await orders.read(request(1))
        assert disk.read == [1, 1]


async def test_no_more_are_kept_than_so_many() -> None:
    disk = Disk()
    async with reading(disk) as (ahead, orders):
        for number in range(20, 20 + KEPT + 2):
            await orders.read(request(number))
        assert list(ahead.ready()) == list(range(22, 22 + KEPT))
        await until(lambda: not {20, 21} & orders._links[0].there.keys())


async def test_without_the_thread_vllm_loads() -> None:
    disk = Disk()
    disk.open.clear()
    async with reading(disk) as (ahead, orders):
        asked = asyncio.create_task(orders.read(request(1)))
        assert await asyncio.to_thread(disk.begun.wait, 20)
        connection = ahead._connection
        assert connection is not None
        connection.shutdown(2)
        assert not await asked
        assert not await orders.read(request(2))
        disk.open.set()
    assert not await Orders().read(request(3))


async def test_a_request_is_sent_once_its_adapter_is_there() -> None:
    disk = Disk()
    disk.open.clear()
    sent = []

    async def add_request(name: str, **_: Any) -> str:
        sent.append(name)
        return name

    async with reading(disk) as (_, orders):
        add = before_requests(add_request, orders)
        cold: asyncio.Future[Any] = asyncio.ensure_future(add("cold", lora_request=request(1)))
        assert await asyncio.to_thread(disk.begun.wait, 20)
        # The engine goes on with others meanwhile.
        assert await add("base", lora_request=None) == "base"
        assert sent == ["base"]
        disk.open.set()
        assert await cold == "cold"
        with pytest.raises(VLLMValidationError):
            await add("damaged", lora_request=request(13))
        assert sent == ["base", "cold"]


async def test_a_place_that_takes_no_socket_leaves_it_to_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 120)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: str(deep))
    with pytest.raises(OSError, match=r"path too long|No such file"):
        Ahead(Disk(), set[int]().__contains__, lambda *_: None).listen()


async def test_a_batch_takes_over_what_the_thread_read_and_evictions_are_told() -> None:
    manager = Manager(slots=2, capacity=3)
    watch = Watch(manager)
    orders = Orders()
    await orders.connect([watch.read_ahead()])
    for number in (1, 2):
        await orders.read(request(number))
    told = watch.residency()
    assert (told["cpu"], told["slots"]) == (["adapter-1", "adapter-2"], [None, None])
    batch(manager, [1])
    # The other is in the cache now, and in no slot.
    told = watch.residency()
    assert (told["cpu"], told["slots"]) == (["adapter-1", "adapter-2"], ["adapter-1", None])
    counts = ("loads", "prefetched", "overlapped", "swaps")
    assert [told[name] for name in counts] == [2, 2, 2, 1]
    batch(manager, [2, 3])
    assert watch.residency()["loads"] == 3
    assert watch.residency()["prefetched"] == 2
    # One too many: the oldest leaves, and the API server hears of it.
    batch(manager, [4])
    assert watch.residency()["evictions"] == 1
    await until(lambda: 1 not in orders._links[0].there)
    assert 2 in orders._links[0].there
    await orders.close()
