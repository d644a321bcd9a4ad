"""What a version brings is put into requests that leave it open, and into no others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from adapters.serving.document import SamplingDefaults, Serving
from server.gateway.body import encode
from server.gateway.routes import ENGINE_ROUTES, EngineRoute
from server.gateway.serving import Dialect, apply_serving, refuse_templates
from tests.adapters.serving.test_document import SERVINGS
from tests.server.gateway.scripted import (
    CHAT,
    PIRATE,
    Gateway,
    ScriptedEngine,
    answer,
    store_blob,
)

TEMPLATE = "{{ messages[-1].content }}"
FULL = Serving(
    chat_template=TEMPLATE,
    system_prompt="Talk like a pirate.",
    defaults=SamplingDefaults(
        temperature=0.25, top_k=7, max_tokens=33, stop=("###",), stop_token_ids=(2,), min_p=0.1
    ),
)
ROUTES = [route for route in ENGINE_ROUTES if route.dialect is not None]
USER = {"role": "user", "content": "hi"}

# Everything a dialect can touch, and more, under JSON values that need not make sense.
KEYS = st.sampled_from(
    [
        "messages",
        "input",
        "prompt",
        "system",
        "instructions",
        "chat_template",
        "chat_template_kwargs",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "stop_sequences",
        "stop_token_ids",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "user",
        "tools",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "developer"]),
            "content": st.text(max_size=5),
        }
    ),
    max_size=4,
)
BODIES = st.dictionaries(KEYS, JSON, max_size=8) | st.builds(
    lambda body, messages: {**body, "messages": messages},
    st.dictionaries(KEYS, JSON, max_size=6),
    MESSAGES,
)


def filled(route: EngineRoute, body: dict[str, Any], serving: Serving = FULL) -> dict[str, Any]:
    document = copy.deepcopy(body)
    apply_serving(document, route.dialect, serving)
    return document


def dialect(path: str) -> EngineRoute:
    return next(route for route in ROUTES if route.path == path)


@given(st.sampled_from(ROUTES), BODIES, SERVINGS)
def test_what_a_request_says_stays(
    route: EngineRoute, body: dict[str, Any], serving: Serving
) -> None:
    document = filled(route, body, serving)
    for key, value in body.items():
        if key == "messages":
            # At most one message before the request's own.
            assert document[key] == value or document[key][1:] == value
        elif key == "chat_template_kwargs" and isinstance(value, dict):
            assert {**document[key], **{k: v for k, v in value.items() if v is not None}} == (
                document[key]
            )
            assert document[key].keys() - value.keys() <= {"chat_template"}
        elif value is not None:
            assert document[key] == value
    assert list(document)[: len(body)] == list(body)
    json.loads(encode(document))


@given(st.sampled_from(ROUTES), BODIES, SERVINGS)
def test_filling_in_twice_changes_nothing_more(
    route: EngineRoute, body: dict[str, Any], serving: Serving
) -> None:
    once = filled(route, body, serving)
    assert filled(route, once, serving) == once


@given(st.sampled_from(ROUTES), BODIES)
def test_a_version_that_brings_nothing_changes_nothing(
    route: EngineRoute, body: dict[str, Any]
) -> None:
    assert filled(route, body, Serving()) == body


@given(st.sampled_from(ROUTES), MESSAGES)
def test_a_request_with_a_system_message_keeps_it(
    route: EngineRoute, messages: list[dict[str, str]]
) -> None:
    said = any(message["role"] in ("system", "developer") for message in messages)
    document = filled(route, {"messages": messages, "input": messages})
    if said:
        assert document["messages"] == messages
        assert "system" not in document
        assert "instructions" not in document


@pytest.mark.parametrize(
    ("path", "body", "added"),
    [
        (
            "/v1/chat/completions",
            {"messages": [USER]},
            {
                "messages": [{"role": "system", "content": "Talk like a pirate."}, USER],
                "chat_template": TEMPLATE,
                "temperature": 0.25,
                "top_k": 7,
                "min_p": 0.1,
                "stop": ["###"],
                "stop_token_ids": [2],
                "max_completion_tokens": 33,
            },
        ),
        (
            "/v1/completions",
            {"prompt": "Once"},
            {
                "temperature": 0.25,
                "top_k": 7,
                "min_p": 0.1,
                "stop": ["###"],
                "stop_token_ids": [2],
                "max_tokens": 33,
            },
        ),
        (
            "/v1/responses",
            {"input": "hi", "chat_template_kwargs": {"thinking": False}},
            {
                "instructions": "Talk like a pirate.",
                "chat_template_kwargs": {"thinking": False, "chat_template": TEMPLATE},
                "temperature": 0.25,
                "top_k": 7,
                "min_p": 0.1,
                "stop": ["###"],
                "stop_token_ids": [2],
                "max_output_tokens": 33,
            },
        ),
        (
            "/v1/messages",
            {"messages": [USER], "max_tokens": 5},
            {
                "system": "Talk like a pirate.",
                "chat_template_kwargs": {"chat_template": TEMPLATE},
                "temperature": 0.25,
                "top_k": 7,
                "stop_sequences": ["###"],
            },
        ),
        (
            "/tokenize",
            {"messages": [USER]},
            {
                "messages": [{"role": "system", "content": "Talk like a pirate."}, USER],
                "chat_template": TEMPLATE,
            },
        ),
        ("/tokenize", {"prompt": "Once"}, {}),
        ("/v1/embeddings", {"input": "Once"}, {}),
    ],
)
def test_each_route_is_told_in_its_own_words(
    path: str, body: dict[str, Any], added: dict[str, Any]
) -> None:
    assert filled(dialect(path), body) == {**body, **added}


def test_the_routes_fields_are_those_that_vllm_reads() -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest

    models = {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionRequest,
        "/v1/responses": ResponsesRequest,
        "/v1/messages": AnthropicMessagesRequest,
        "/tokenize": TokenizeChatRequest,
    }
    for path, model in models.items():
        used = dialect(path).dialect
        assert isinstance(used, Dialect)
        known = set(model.model_fields)
        assert {*used.fields.values(), *used.limits} <= known
        body: dict[str, Any] = {"messages": [USER], "input": "hi"}
        if path != "/v1/completions":
            assert filled(dialect(path), body).keys() - body.keys() <= known


def test_vllm_takes_the_template_from_where_it_is_put() -> None:
    """Read by vLLM's own request classes; the engine's answer to it is in tests/engine."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeChatRequest

    def body(path: str) -> dict[str, Any]:
        asked = {"input": "hi"} if path == "/v1/responses" else {"messages": [USER]}
        return filled(dialect(path), {"model": "a", **asked})

    message = AnthropicMessagesRequest(**body("/v1/messages"))
    requests = (
        ChatCompletionRequest(**body("/v1/chat/completions")),
        TokenizeChatRequest(**body("/tokenize")),
        ResponsesRequest(**body("/v1/responses")),
        AnthropicServingMessages._build_base_request(message, [USER]),
    )
    for request in requests:
        arguments = request.build_chat_params(None, "auto").get_apply_chat_template_kwargs()
        assert arguments["chat_template"] == TEMPLATE


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_limit_is_the_requests_own(limit: str) -> None:
    document = filled(dialect("/v1/chat/completions"), {"messages": [USER], limit: 4})
    assert {k: v for k, v in document.items() if k.startswith("max_")} == {limit: 4}


def test_null_is_as_if_not_said() -> None:
    document = filled(dialect("/v1/chat/completions"), {"messages": [USER], "temperature": None})
    assert document["temperature"] == 0.25


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    ],
)
def test_a_clients_template_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="--client-templates") as caught:
        refuse_templates(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "body", [{}, {"chat_template": None}, {"chat_template_kwargs": {"a": 1}}, {"prompt": "x"}]
)
def test_other_bodies_pass(body: dict[str, Any]) -> None:
    refuse_templates(body)


# --- through the gateway -------------------------------------------------------------------------


async def test_it_reaches_the_engine_with_the_request(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    store_blob(gateway.state.settings.store, PIRATE, FULL)
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json={**CHAT, "temperature": 1}) as response:
        assert response.status == 200
    (sent,) = engine.received
    assert sent["temperature"] == 1
    assert sent["top_k"] == 7
    assert sent["chat_template"] == TEMPLATE
    assert sent["messages"][0] == {"role": "system", "content": "Talk like a pirate."}
    assert sent["messages"][1:] == CHAT["messages"]


async def test_the_base_and_other_versions_are_left_alone(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    store_blob(gateway.state.settings.store, PIRATE, FULL)
    engine.handler = answer
    for model in ("tiny", "pirate"):
        async with gateway.post("/v1/chat/completions", json={**CHAT, "model": model}) as response:
            assert response.status == 200
        # This gateway tells tenants apart: the salt is theirs, and nothing of a version's.
        assert engine.received[-1].keys() == {"model", "messages", "cache_salt"}
        assert engine.received[-1]["messages"] == CHAT["messages"]


@pytest.mark.parametrize("path", [route.path for route in ENGINE_ROUTES])
async def test_a_clients_template_does_not_reach_the_engine(
    gateway: Gateway, engine: ScriptedEngine, path: str
) -> None:
    """The engine trusts whatever template it is sent: none of a client's may come through."""
    engine.handler = answer
    for model in ("tiny", "pirate:prod"):
        for own in ({"chat_template": "x"}, {"chat_template_kwargs": {"chat_template": "x"}}):
            async with gateway.post(path, json={**CHAT, **own, "model": model}) as response:
                assert response.status == 400
                assert (await response.json())["error"]["code"] == "invalid_request"
    assert engine.received == []


async def test_it_does_where_the_server_is_told_so(
    gateway: Gateway, engine: ScriptedEngine, allow_templates: Callable[[], None]
) -> None:
    store_blob(gateway.state.settings.store, PIRATE, FULL)
    allow_templates()
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json={**CHAT, "chat_template": "x"}) as it:
        assert it.status == 200
    assert engine.received[0]["chat_template"] == "x"


async def test_a_version_whose_document_is_lost_is_not_served_without_it(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    store_blob(gateway.state.settings.store, PIRATE, FULL)
    from adapters.store.layout import StoreLayout

    (StoreLayout(gateway.state.settings.store).blob(PIRATE) / "serving.json").unlink()
    engine.handler = answer
    async with gateway.post("/v1/chat/completions", json=CHAT) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == "store_damaged"
    assert engine.received == []


@pytest.fixture
def allow_templates(gateway: Gateway) -> Callable[[], None]:
    def allow() -> None:
        settings = gateway.state.settings.model_copy(update={"client_templates": True})
        # Frozen for the server; the fixture's gateway was made with the default.
        object.__setattr__(gateway.state, "settings", settings)

    return allow
