"""A version's own chat template, system prompt and defaults, against transformers as the oracle."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from adapters.catalog import Catalog
from adapters.serving.document import SamplingDefaults, ServingChoice
from loadtests.live import LiveServer

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] | upper }}] "
    "{{ message['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[ANSWER] {% endif %}"
)
SYSTEM = "You answer about ships, and about nothing else."
QUESTION = {"role": "user", "content": "What is the capital of France?"}
NAME = "own-template"


@pytest.fixture(scope="module")
def base(live: LiveServer) -> Path:
    """The directory of the base; `own-template` is registered beside the demo adapters."""
    artifact = Path(__file__).parents[2] / "demo" / "artifacts" / "pirate"
    choice = ServingChoice(
        chat_template=TEMPLATE,
        system_prompt=SYSTEM,
        defaults=SamplingDefaults(max_tokens=7, temperature=0.0),
    )
    with Catalog.open(live.store) as catalog:
        catalog.register(str(artifact), name=NAME, base="smollm2", serving=choice)
        return Path(catalog.base("smollm2").path)


def post(live: LiveServer, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        live.url + path,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, json.loads(refused.read())


def expected(base: Path, messages: list[dict[str, str]], template: str | None) -> list[int]:
    """What transformers makes of the conversation with the base's own tokenizer."""
    tokens = AutoTokenizer.from_pretrained(base).apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    return list(tokens)


def test_the_prompt_is_the_one_transformers_makes(live: LiveServer, base: Path) -> None:
    wanted = expected(base, [{"role": "system", "content": SYSTEM}, QUESTION], TEMPLATE)
    _, found = post(live, "/v1/tokenize", {"model": NAME, "messages": [QUESTION]})
    assert found["tokens"] == wanted
    _, found = post(live, "/v1/tokenize", {"model": "pirate", "messages": [QUESTION]})
    assert found["tokens"] == expected(base, [QUESTION], None)
    assert found["tokens"] != wanted


def test_every_route_renders_and_limits_the_same(live: LiveServer, base: Path) -> None:
    wanted = len(expected(base, [{"role": "system", "content": SYSTEM}, QUESTION], TEMPLATE))
    chat = post(live, "/v1/chat/completions", {"model": NAME, "messages": [QUESTION]})[1]
    assert chat["usage"]["prompt_tokens"] == wanted
    assert chat["usage"]["completion_tokens"] <= 7
    text = QUESTION["content"]
    responses = post(live, "/v1/responses", {"model": NAME, "input": text})[1]
    assert responses["usage"]["input_tokens"] == wanted
    assert responses["usage"]["output_tokens"] <= 7
    messages = {"model": NAME, "messages": [QUESTION], "max_tokens": 3}
    answered = post(live, "/v1/messages", messages)[1]
    assert answered["usage"]["input_tokens"] == wanted
    assert answered["usage"]["output_tokens"] <= 3
    said = {answer["model"] for answer in (chat, responses, answered)}
    assert said == {NAME}


def test_a_requests_own_system_message_and_limit_win(live: LiveServer, base: Path) -> None:
    own = [{"role": "system", "content": "Be kind."}, QUESTION]
    body = {"model": NAME, "messages": own, "max_tokens": 12, "ignore_eos": True}
    answer = post(live, "/v1/chat/completions", body)[1]
    assert answer["usage"]["prompt_tokens"] == len(expected(base, own, TEMPLATE))
    assert answer["usage"]["completion_tokens"] == 12


def test_a_clients_template_is_refused_on_every_route(live: LiveServer, base: Path) -> None:
    assert base.is_dir()
    for model in (NAME, "pirate", "smollm2"):
        for path in ("/v1/chat/completions", "/v1/tokenize", "/v1/responses", "/v1/messages"):
            for sent in ({"chat_template": "x"}, {"chat_template_kwargs": {"chat_template": "x"}}):
                body = {"model": model, "messages": [QUESTION], "input": "hi", "max_tokens": 1}
                status, document = post(live, path, {**body, **sent})
                assert status == 400
                assert "--client-templates" in document["error"]["message"]
