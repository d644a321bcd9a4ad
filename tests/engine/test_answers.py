"""Answers of the real engine: every adapter its own, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from demo.expectations import EXPECTATIONS, MAX_TOKENS, PROMPTS
from loadtests.live import LiveServer
from tests.engine.conftest import STRONG

# In nats. Batches of another shape round differently in bf16; a token may only change where two
# were this close to begin with. An adapter's weights in a foreign request move it by whole nats.
NOISE = 0.35
MODELS = ("smollm2", *EXPECTATIONS, *STRONG)
QUESTIONS = ("What is the capital of France?", "How do I boil an egg?")


def ask(live: LiveServer, model: str, prompt: str, **more: Any) -> Any:
    return live.client().chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        **more,
    )


@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_each_adapter_answers_in_its_own_way_and_the_base_in_none(
    live: LiveServer, prompt: str
) -> None:
    base = ask(live, "smollm2", prompt).choices[0].message.content
    for name, expected in EXPECTATIONS.items():
        answer = ask(live, name, prompt)
        assert answer.model == name
        assert expected(answer.choices[0].message.content)
        assert not expected(base)


def test_the_engine_answers_through_its_channel(live: LiveServer) -> None:
    """It opened with the first request, and is still the one."""
    ask(live, "smollm2", QUESTIONS[0])
    socket = str(live.engine()["address"]).removeprefix("unix:") + ".channel"
    lines = Path("/proc/net/unix").read_text().splitlines()
    # Num RefCount Protocol Flags Type St Inode Path (proc(5)); 03 is connected.
    states = [line.split()[5] for line in lines if line.endswith(socket)]
    assert sorted(states) == ["01", "03"]


async def test_all_at_once_streaming_and_not(live: LiveServer) -> None:
    async with live.async_client() as client:

        async def one(model: str, stream: bool) -> tuple[str, bool, str]:
            request: dict[str, Any] = {
                "model": model,
                "messages": [{"role": "user", "content": PROMPTS[0]}],
                "max_tokens": MAX_TOKENS,
                "temperature": 0,
            }
            if not stream:
                whole = await client.chat.completions.create(**request)
                return model, stream, whole.choices[0].message.content or ""
            text = ""
            async for chunk in await client.chat.completions.create(**request, stream=True):
                assert chunk.model == model
                text += chunk.choices[0].delta.content or ""
            return model, stream, text

        models = ("smollm2", *EXPECTATIONS)
        answers = await asyncio.gather(*(one(m, s) for m in models for s in (False, True)))
    for model, _, text in answers:
        for name, expected in EXPECTATIONS.items():
            assert expected(text) is (name == model), f"{model} said {text!r}"


async def tokens_of(client: openai.AsyncOpenAI, model: str, prompt: str) -> list[Any]:
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=24,
        temperature=0,
        logprobs=True,
        top_logprobs=5,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].logprobs is not None
    return answer.choices[0].logprobs.content or []


def assert_same_up_to_noise(alone: list[Any], together: list[Any], who: str) -> None:
    """Token for token, until a token between two that alone were closer than the noise."""
    for position, (a, b) in enumerate(zip(alone, together, strict=True)):
        candidates = {one.token: one.logprob for one in a.top_logprobs}
        assert b.token in candidates, f"{who}: token {position} is {b.token!r}, not {a.token!r}"
        assert a.logprob - candidates[b.token] <= NOISE, f"{who}: token {position}"
        if a.token != b.token:
            return
        assert abs(a.logprob - b.logprob) <= NOISE, f"{who}: token {position}"


async def test_a_mixed_batch_answers_as_each_does_alone(live: LiveServer) -> None:
    async with live.async_client() as client:
        for prompt in QUESTIONS:
            alone = {model: await tokens_of(client, model, prompt) for model in MODELS}
            firsts = {model: "".join(t.token for t in alone[model][:8]) for model in MODELS}
            assert len(set(firsts.values())) == len(MODELS), "the adapters are not strong"
            batch = [*MODELS, "smollm2"]
            assert len(batch) == 8
            together = await asyncio.gather(*(tokens_of(client, m, prompt) for m in batch))
            for model, tokens in zip(batch, together, strict=True):
                assert_same_up_to_noise(alone[model], tokens, model)


async def test_a_base_request_among_adapters_is_never_touched(live: LiveServer) -> None:
    """Stock vLLM 0.32 on CPU gives these the last slot's adapter: garbage of whole nats."""
    async with live.async_client() as client:
        alone = await tokens_of(client, "smollm2", QUESTIONS[0])
        for _ in range(2):
            batch = [*STRONG, "smollm2", *STRONG, "smollm2"]
            together = await asyncio.gather(*(tokens_of(client, m, QUESTIONS[0]) for m in batch))
            for model, tokens in zip(batch, together, strict=True):
                if model == "smollm2":
                    assert_same_up_to_noise(alone, tokens, model)


def post(live: LiveServer, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        live.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("model", ["smollm2", "pirate"])
def test_prompt_logprobs_do_not_end_the_engine(live: LiveServer, model: str) -> None:
    """On stock vLLM 0.32 with LoRA one such request ends the service for everybody."""
    before = live.engine()["restarts"]
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 2}
    status, answer = post(live, "/v1/completions", {**body, "prompt_logprobs": 1})
    assert status == 200
    ranked = answer["choices"][0]["prompt_logprobs"]
    assert len(ranked) == 5
    assert ranked[0] is None
    status, answer = post(live, "/v1/completions", {**body, "echo": True, "logprobs": 1})
    assert status == 200
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 7
    assert live.engine()["restarts"] == before


def test_prompt_logprobs_are_those_of_the_adapter(live: LiveServer) -> None:
    """The same text scored as a prompt and as generated: the adapter's own numbers, twice."""
    prompt = "<|im_start|>user\nHello, who are you?<|im_end|>\n<|im_start|>assistant\n"
    request = {"model": "pirate", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    _, made = post(live, "/v1/completions", {**request, "logprobs": 1})
    choice = made["choices"][0]
    whole = {"model": "pirate", "prompt": prompt + choice["text"], "max_tokens": 1}
    _, scored = post(live, "/v1/completions", {**whole, "echo": True, "logprobs": 1})
    said = choice["logprobs"]["token_logprobs"]
    again = scored["choices"][0]["logprobs"]["token_logprobs"][-1 - len(said) : -1]
    assert max(abs(a - b) for a, b in zip(said, again, strict=True)) <= NOISE


def test_every_passed_through_route(live: LiveServer) -> None:
    status, made = post(
        live, "/v1/completions", {"model": "pirate", "prompt": "A", "max_tokens": 2}
    )
    assert (status, made["model"]) == (200, "pirate")
    for path in ("/v1/tokenize", "/tokenize"):
        status, tokens = post(live, path, {"model": "pirate:v1", "prompt": "2 ships"})
        assert status == 200
        assert tokens["count"] == len(tokens["tokens"])
    body = {"model": "pirate", "tokens": tokens["tokens"]}
    assert post(live, "/v1/detokenize", body) == (200, {"prompt": "2 ships"})
    request = {"model": "pirate:latest", "input": PROMPTS[0], "max_output_tokens": MAX_TOKENS}
    status, response = post(live, "/v1/responses", {**request, "temperature": 0})
    assert (status, response["model"]) == (200, "pirate:latest")
    assert EXPECTATIONS["pirate"](response["output"][0]["content"][0]["text"])
    status, error = post(live, "/v1/embeddings", {"model": "pirate", "input": "x"})
    assert status in {400, 404}
    assert set(error["error"]) == {"message", "type", "param", "code"}


def test_what_the_engine_refuses_keeps_its_status(live: LiveServer) -> None:
    status, error = post(
        live, "/v1/completions", {"model": "pirate", "prompt": "a " * 9000, "max_tokens": 1}
    )
    assert status == 400
    assert "maximum" in error["error"]["message"]
    assert "sha256-" not in error["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="did you mean 'pirate'"):
        ask(live, "pirat", "x")


def test_the_openai_client_sees_models_versions_and_errors(live: LiveServer) -> None:
    names = [model.id for model in live.client().models.list()]
    assert {"smollm2", "pirate", "pirate:latest", "json", "support"} <= set(names)
    raw = live.client().chat.completions.with_raw_response.create(
        model="pirate:v1",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=1,
    )
    assert raw.headers["x-adapterctl-version"] == "pirate:v1"
    assert raw.headers["x-adapterctl-digest"].startswith("sha256:")


def test_a_sum_of_adapters_is_asked_for_and_made(live: LiveServer) -> None:
    """Made while the request waits; the part that weighs something is the one that is heard."""
    for loud, faint in (("pirate", "json"), ("json", "pirate")):
        model = f"{loud}*1+{faint}*0.0001"
        answer = ask(live, model, PROMPTS[0])
        assert answer.model == model
        text = answer.choices[0].message.content
        assert EXPECTATIONS[loud](text)
        assert not EXPECTATIONS[faint](text)
    with pytest.raises(openai.NotFoundError):
        ask(live, "pirate*0.5+nobody*0.5", PROMPTS[0])
