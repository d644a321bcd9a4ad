"""HTTP routes of ours in vLLM's API server: what the worker holds, prefetch, pins.

    GET  /adapterctl/alive                        returns when core and workers have answered
    GET  /adapterctl/residency                    what `Watch.residency` says
    POST /adapterctl/prefetch {"name": NAME}      returns when the adapter is in a slot; with
                              "wait": false at once, and it is read beside the engine's steps
    PUT  /adapterctl/pins     {"names": [NAME …]} pins exactly these

An endpoint plugin as vLLM documents it, but handed over by our general plugin: vLLM loads endpoint
plugins only where `VLLM_PLUGINS` names them, and that variable turns off every other plugin of the
environment, those of hardware platforms included.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vllm.plugins
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from vllm.envs import enable_envs_cache
from vllm.v1.engine.exceptions import EngineDeadError

from server.vllm_plugin import WORKER_EXTENSION
from server.vllm_plugin.ordering import Orders, before_requests, instead_of_loading

logger = logging.getLogger("vllm.adapterctl.endpoints")

PREFIX = "/adapterctl"


class PrefetchBody(BaseModel):
    name: str
    wait: bool = True


class PinsBody(BaseModel):
    names: list[str]


def install() -> None:
    """Have vLLM's API server load our routes, once per process."""
    original = vllm.plugins.load_endpoint_plugins
    if not hasattr(original, "__wrapped__"):
        vllm.plugins.load_endpoint_plugins = with_ours(original)


def with_ours(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """vLLM's load_endpoint_plugins that finds ours without an entry point."""

    @functools.wraps(original)
    def load(*arguments: Any, **options: Any) -> list[Any]:
        return [*original(*arguments, **options), ResidencyEndpoints()]

    return load


class ResidencyEndpoints:
    """vLLM's EndpointPlugin protocol."""

    name = "adapterctl"
    required_tasks = None

    def __init__(self) -> None:
        # Any engine; the next one only where it has our worker's methods.
        self._any_engine: Any = None
        self._engine: Any = None
        self._models: Any = None
        self._orders = Orders()
        self._into_slot: Any = None
        self._hints: set[asyncio.Task[Any]] = set()
        self._channels: asyncio.Server | None = None

    def attach_router(self, app: FastAPI) -> None:
        # Imported where the API server is being made: nowhere else is it needed.
        from server.vllm_plugin import answering, channel

        answering.install()
        channel.answer_through_channels()
        app.add_api_route(f"{PREFIX}/alive", self.alive, methods=["GET"])
        app.add_api_route(f"{PREFIX}/residency", self.residency, methods=["GET"])
        app.add_api_route(f"{PREFIX}/prefetch", self.prefetch, methods=["POST"])
        app.add_api_route(f"{PREFIX}/pins", self.pins, methods=["PUT"])

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Begin to watch before the first request; without our worker methods do nothing."""
        from server.vllm_plugin import channel

        # vLLM does so in the engine core only; here it reads the environment for every token.
        enable_envs_cache()
        self._any_engine = engine_client
        if args.uds:
            self._channels = await channel.listen(Path(args.uds))
        if engine_client is None or not _has_our_methods(engine_client.vllm_config):
            return
        watched = await engine_client.collective_rpc("adapterctl_watch")
        if all(watched):
            self._engine, self._models = engine_client, state.openai_serving_models
            self._into_slot = engine_client.add_lora
            await self._read_ahead(engine_client)

    async def _read_ahead(self, engine: Any) -> None:
        """Have adapters read beside the engine's steps, where every worker has a socket for it."""
        addresses = await engine.collective_rpc("adapterctl_listen")
        if not all(addresses):
            return
        try:
            await self._orders.connect(addresses)
        except OSError as error:
            logger.warning("adapters are not read ahead: %s", error)
            return
        engine.add_lora = instead_of_loading(engine.add_lora, self._orders)
        engine.add_request = before_requests(engine.add_request, self._orders)

    async def alive(self, request: Request) -> JSONResponse:
        """vLLM's own /health asks nobody but this process."""
        if self._any_engine is None:
            return _not_here()
        try:
            await self._any_engine.collective_rpc("check_health")
        except EngineDeadError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        return JSONResponse({})

    async def residency(self, request: Request) -> JSONResponse:
        if self._engine is None:
            return _not_here()
        # Every worker of a model that is split holds the same adapters.
        return JSONResponse((await self._engine.collective_rpc("adapterctl_residency"))[0])

    async def prefetch(self, body: PrefetchBody) -> JSONResponse:
        if self._engine is None:
            return _not_here()
        if not body.wait:
            # What is wrong with it is told to whoever asks for it.
            hint = asyncio.create_task(self._loaded(body.name))
            self._hints.add(hint)
            hint.add_done_callback(self._hints.discard)
            return JSONResponse({}, status_code=202)
        began = time.perf_counter()
        found = await self._loaded(body.name, in_slot=True)
        if isinstance(found, str):
            return JSONResponse({"error": found}, status_code=409)
        return JSONResponse({"seconds": time.perf_counter() - began})

    async def pins(self, body: PinsBody) -> JSONResponse:
        if self._engine is None:
            return _not_here()
        most = int(self._engine.vllm_config.lora_config.max_loras) - 1
        refused: dict[str, str] = {}
        adapters: list[tuple[str, int, str]] = []
        for name in body.names:
            if len(adapters) == most:
                refused[name] = f"no more than {most} can be pinned"
                continue
            found = await self._loaded(name)
            if isinstance(found, str):
                refused[name] = found
            else:
                adapters.append((name, found.lora_int_id, found.lora_path))
        # First the scheduler: what it puts into a batch after that leaves the pins their slots.
        numbers = [number for _, number, _ in adapters]
        await self._engine.engine_core.call_utility_async("adapterctl_reserve", numbers)
        pinned = (await self._engine.collective_rpc("adapterctl_pin", args=(adapters,)))[0]
        return JSONResponse({"pinned": pinned, "refused": refused})

    async def _loaded(self, name: str, *, in_slot: bool = False) -> Any:
        """vLLM's request for an adapter that is in its memory now, or why it cannot be.

        `in_slot`: in a slot, too, which it takes from the one used longest ago.
        """
        known = name in self._models.lora_requests
        found = await self._models.resolve_lora(name)
        if not hasattr(found, "lora_int_id"):
            return found.error.message
        load = self._into_slot if in_slot else self._engine.add_lora
        try:
            # vLLM loads it when it learns the name; it may have evicted it since, and what was
            # read ahead of a step has no slot.
            if known or load != self._engine.add_lora:
                await load(found)
        # What the engine core raised comes as another class (EngineCoreError and the like).
        except Exception as error:  # noqa: BLE001
            return str(error)
        return found


def _has_our_methods(config: Any) -> bool:
    return (
        config.lora_config is not None
        and config.parallel_config.worker_extension_cls == WORKER_EXTENSION
    )


def _not_here() -> JSONResponse:
    return JSONResponse({"error": "this engine was not started to say so"}, status_code=501)
