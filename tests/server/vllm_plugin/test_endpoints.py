"""Our routes in vLLM's API server: its own application, its own model list, no engine behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
import vllm.plugins
from fastapi import FastAPI
from starlette.datastructures import State
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver
from vllm.plugins.endpoint_plugins.interface import (
    EndpointPlugin,
    attach_endpoint_plugins,
    init_endpoint_plugins_state,
)
from vllm.v1.engine.exceptions import EngineDeadError

from server.vllm_plugin import WORKER_EXTENSION, endpoints
from tests.server.gateway.scripted import serving

SLOTS = 3


class Engine:
    """vLLM's engine client as far as our routes ask it."""

    def __init__(self, extension: str = WORKER_EXTENSION) -> None:
        self.vllm_config = SimpleNamespace(
            lora_config=SimpleNamespace(max_loras=SLOTS),
            parallel_config=SimpleNamespace(worker_extension_cls=extension),
        )
        self.model_config = SimpleNamespace(model="base")
        self.renderer = self.input_processor = None
        self.engine_core = self
        self.calls: list[tuple[str, Any]] = []
        self.loaded: list[str] = []
        self.dead = False
        # Where the worker takes orders; nowhere.
        self.socket = ""

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append((method, args))
        if self.dead:
            raise EngineDeadError
        if method == "adapterctl_pin":
            return [[name for name, _, _ in args[0]]]
        if method == "adapterctl_listen":
            return [self.socket]
        return [{"slots": [None]} if method == "adapterctl_residency" else True]

    async def call_utility_async(self, method: str, numbers: list[int]) -> None:
        self.calls.append((method, numbers))

    async def add_lora(self, request: LoRARequest) -> bool:
        if request.lora_name == "broken":
            raise ValueError("it is no adapter")
        self.loaded.append(request.lora_name)
        return True


class Resolver(LoRAResolver):  # type: ignore[misc]  # vLLM is untyped here
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return None if lora_name == "unknown" else LoRARequest(lora_name, 1, f"/{lora_name}")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def url(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    async with served(engine, monkeypatch) as address:
        yield address


def served(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An application that took our routes in as vLLM's API server does."""
    none = endpoints.with_ours(lambda *_: [])
    monkeypatch.setattr(vllm.plugins, "load_endpoint_plugins", none)
    app = FastAPI()
    attach_endpoint_plugins(app, ("generate",))
    models = OpenAIServingModels(engine, [])
    models.lora_resolvers = [Resolver()]
    state = State({"openai_serving_models": models})
    state.endpoint_plugins = app.state.endpoint_plugins

    async def started(scope: Any, receive: Any, send: Any) -> None:
        if not engine.calls:
            await init_endpoint_plugins_state(engine, state, SimpleNamespace(uds=None))
            engine.calls.append(("started", None))
        await app(scope, receive, send)

    # An application, as FastAPI's is; uvicorn asks no more of it.
    return serving(cast(FastAPI, started))


async def ask(method: str, url: str, body: object = None) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, url, json=body) as response,
    ):
        return response.status, await response.json()


def test_it_is_an_endpoint_plugin_as_vllm_wants_it() -> None:
    assert isinstance(endpoints.ResidencyEndpoints(), EndpointPlugin)


def test_others_plugins_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm.plugins, "load_endpoint_plugins", lambda tasks: [tasks])
    endpoints.install()
    endpoints.install()
    first, ours = vllm.plugins.load_endpoint_plugins("generate")
    assert first == "generate"
    assert isinstance(ours, endpoints.ResidencyEndpoints)


async def test_it_watches_from_the_start_and_tells(url: str, engine: Engine) -> None:
    assert await ask("GET", f"{url}/adapterctl/residency") == (200, {"slots": [None]})
    assert [method for method, _ in engine.calls] == [
        "adapterctl_watch",
        "adapterctl_listen",
        "started",
        "adapterctl_residency",
    ]


async def test_a_sign_of_life_is_the_workers_own(url: str, engine: Engine) -> None:
    assert await ask("GET", f"{url}/adapterctl/alive") == (200, {})
    assert engine.calls[-1] == ("check_health", ())
    engine.dead = True
    status, answer = await ask("GET", f"{url}/adapterctl/alive")
    assert (status, "EngineCore" in answer["error"]) == (503, True)


async def test_a_prefetch_loads_also_what_was_evicted(url: str, engine: Engine) -> None:
    for _ in range(2):
        status, answer = await ask("POST", f"{url}/adapterctl/prefetch", {"name": "pirate"})
        assert status == 200
        assert answer["seconds"] >= 0
    # vLLM itself loads a name once; whether its weights are still there it does not look.
    assert engine.loaded == ["pirate", "pirate"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unknown", "LoRA adapter unknown does not exist"),
        ("broken", "LoRA adapter 'broken' was found but could not be loaded."),
    ],
)
async def test_what_cannot_be_loaded_is_said(url: str, name: str, why: str) -> None:
    answer = await ask("POST", f"{url}/adapterctl/prefetch", {"name": name})
    assert answer == (409, {"error": why})


async def test_pins_go_to_the_scheduler_first(url: str, engine: Engine) -> None:
    names = ["one", "unknown", "two", "three"]
    status, answer = await ask("PUT", f"{url}/adapterctl/pins", {"names": names})
    assert status == 200
    # All slots but one: another is not even looked at.
    assert answer == {
        "pinned": ["one", "two"],
        "refused": {
            "three": "no more than 2 can be pinned",
            "unknown": "LoRA adapter unknown does not exist",
        },
    }
    assert engine.loaded == ["one", "two"]
    assert engine.calls[-2:] == [
        ("adapterctl_reserve", [1, 3]),
        ("adapterctl_pin", ([("one", 1, "/one"), ("two", 3, "/two")],)),
    ]


async def test_an_engine_with_another_extension_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine("somebody.elses.Extension")
    async with served(engine, monkeypatch) as url:
        for method, route, body in (
            ("GET", "residency", None),
            ("POST", "prefetch", {"name": "pirate"}),
            ("PUT", "pins", {"names": []}),
        ):
            status, answer = await ask(method, f"{url}/adapterctl/{route}", body)
            assert status == 501
            assert answer["error"]
        assert engine.calls == [("started", None)]
        # Whether it lives, any engine says.
        assert (await ask("GET", f"{url}/adapterctl/alive"))[0] == 200
