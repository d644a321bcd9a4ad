"""The API server's side of `ahead.py`: a request is sent to the engine once its adapter is read.

Until then the engine goes on with others' steps; then the step that takes the request in only
takes over what is there. It is so for every way in: a name that is new, one whose adapter was
evicted since, a hint, a prefetch, a pin.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError

logger = logging.getLogger("vllm.adapterctl.ordering")


class _Link:
    """The connection to one worker: what it has in memory, and what it was asked to read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        # By vLLM's id: whether nothing can go wrong with it any more.
        self.there: dict[int, bool] = {}
        self._answers: dict[int, asyncio.Future[str | None]] = {}
        self.listening = asyncio.create_task(self._listen())

    async def read(self, request: Any) -> str | None:
        """Why it cannot be read; None: it is there, or the connection is lost."""
        number = request.lora_int_id
        if number in self.there or self.listening.done():
            return None
        future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._answers[number] = future
        order = {"id": number, "name": request.lora_name, "path": request.lora_path}
        self._writer.write(json.dumps(order).encode() + b"\n")
        return await future

    def close(self) -> None:
        self.listening.cancel()
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                answer = json.loads(line)
                if "gone" in answer:
                    self.there.pop(answer["gone"], None)
                    continue
                # At once, not by who waits: the next line may say that it is gone again.
                if answer["error"] is None:
                    self.there[answer["id"]] = answer["proved"]
                self._answer(answer["id"], answer["error"])
        except (OSError, ValueError) as error:
            logger.warning("adapters are not read ahead any more: %s", error)
        finally:
            # Nobody tells any more what goes: nothing is known to be there.
            self.there.clear()
            for number in list(self._answers):
                self._answer(number, None)

    def _answer(self, number: int, error: str | None) -> None:
        future = self._answers.pop(number, None)
        if future is not None and not future.done():
            future.set_result(error)


class Orders:
    """Has the engine's workers read adapters; knows what they have."""

    def __init__(self) -> None:
        self._links: list[_Link] = []
        self._pending: dict[int, asyncio.Task[None]] = {}

    async def connect(self, addresses: Sequence[str]) -> None:
        """To the sockets of all workers of the engine. Raises OSError."""
        for address in addresses:
            self._links.append(_Link(*await asyncio.open_unix_connection(address)))

    async def close(self) -> None:
        """End the connections."""
        for link in self._links:
            link.close()
        tasks = [*(link.listening for link in self._links), *self._pending.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def read(self, request: Any) -> bool:
        """Have the adapter in every worker's memory; False where only vLLM can say if it is good.

        Waits for none of the engine's steps. Raises VLLMValidationError (a 400) for an adapter
        that cannot be read.
        """
        number = request.lora_int_id
        if not all(number in link.there for link in self._links):
            pending = self._pending.get(number)
            if pending is None:
                pending = self._pending[number] = asyncio.create_task(self._ask(request))
                pending.add_done_callback(lambda _: self._pending.pop(number, None))
            # A client that leaves does not end what others wait for.
            await asyncio.shield(pending)
        return bool(self._links) and all(link.there.get(number, False) for link in self._links)

    async def _ask(self, request: Any) -> None:
        for error in await asyncio.gather(*(link.read(request) for link in self._links)):
            if error is not None:
                raise VLLMValidationError(
                    f"LoRA adapter '{request.lora_name}' could not be loaded: {error}"
                )


def before_requests(
    original: Callable[..., Awaitable[Any]], orders: Orders
) -> Callable[..., Awaitable[Any]]:
    """AsyncLLM.add_request that has the request's adapter read first."""

    @functools.wraps(original)
    async def add_request(*arguments: Any, **options: Any) -> Any:
        adapter = options.get("lora_request")
        if adapter is not None:
            await orders.read(adapter)
        return await original(*arguments, **options)

    return add_request


def instead_of_loading(
    original: Callable[[Any], Awaitable[bool]], orders: Orders
) -> Callable[[Any], Awaitable[bool]]:
    """AsyncLLM.add_lora that returns when the adapter is in memory, and takes nobody's slot.

    vLLM's own goes through the engine core: it waits for the step that runs, has all streams wait
    for the load, and takes the slot used longest ago from whoever has it. What only an attempt can
    tell (`proved` is False) still goes that way.
    """

    @functools.wraps(original)
    async def add_lora(request: Any) -> bool:
        return await orders.read(request) or await original(request)

    return add_lora
