"""What vLLM's API server says of an output that is not finite, and whom it blames."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.exceptions import GenerationError
from vllm.sampling_params import RequestOutputKind

from server.engine.not_finite import Fault, fault_in, fault_in_event, sentence
from server.vllm_plugin import answering
from server.vllm_plugin.finite import STOPPED

LORA = SimpleNamespace(lora_name="sha256-1")
ENGINE = SimpleNamespace(model_config=SimpleNamespace(max_model_len=6))


def part(tokens: list[int], stop_reason: str | None = None) -> Any:
    one = SimpleNamespace(token_ids=tokens, stop_reason=stop_reason)
    return SimpleNamespace(prompt_token_ids=[1, 2], outputs=[one])


class Engine:
    """AsyncLLM.generate: an adapter fails at its third token, the base where it is told to."""

    def __init__(self, base: str | None = None) -> None:
        self.base = base
        self.asked: list[list[int]] = []
        self.closed = 0

    async def generate(
        self, engine: Any, prompt: Any, params: Any, request_id: str, lora_request: Any = None
    ) -> AsyncGenerator[Any]:
        try:
            if isinstance(prompt, dict):
                self.asked.append(prompt["prompt_token_ids"])
                yield part([5], self.base)
                return
            yield part([3])
            yield part([4])
            yield part([], STOPPED)
            yield part([9])
        finally:
            self.closed += 1


async def ended(
    engine: Engine, judge: answering.Judge, lora: Any = LORA
) -> tuple[int, Fault | None]:
    """How many parts came, and who is blamed."""
    generate = answering.explaining_texts(engine.generate, judge)
    params = SamplingParams(output_kind=RequestOutputKind.DELTA)
    parts = 0
    with pytest.raises(GenerationError) as caught:
        async for _ in generate(ENGINE, "text", params, "r", lora_request=lora):
            parts += 1
    return parts, fault_in(str(caught.value))


async def test_an_adapter_is_blamed_where_the_base_goes_on_from_the_same_tokens() -> None:
    engine, now = Engine(), [100.0]
    judge = answering.Judge(engine.generate, lambda: now[0])
    assert await ended(engine, judge) == (2, Fault.ADAPTER)
    assert engine.asked == [[1, 2, 3, 4]]
    assert engine.closed == 2
    # For a minute that is known.
    now[0] += answering.REMEMBERED - 1
    assert await ended(engine, judge) == (2, Fault.ADAPTER)
    assert len(engine.asked) == 1
    now[0] += 2
    assert await ended(engine, judge) == (2, Fault.ADAPTER)
    assert len(engine.asked) == 2


async def test_nobody_is_blamed_for_the_base() -> None:
    engine = Engine(base=STOPPED)
    judge = answering.Judge(engine.generate)
    assert await ended(engine, judge) == (2, Fault.BASE)
    assert await ended(engine, judge) == (2, Fault.BASE)
    # That is no verdict on the adapter: its next request is looked at again.
    assert len(engine.asked) == 2
    assert await ended(engine, judge, lora=None) == (2, Fault.BASE)
    assert len(engine.asked) == 2


async def test_a_text_as_long_as_the_model_takes_leaves_room_for_the_base() -> None:
    engine = Engine()
    error = await answering.Judge(engine.generate).error(ENGINE, LORA, [1, 2, 3, 4, 5, 6])
    assert fault_in(str(error)) is Fault.ADAPTER
    assert engine.asked == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("with_adapter", "alone", "fault"),
    [(1.0, 1.0, None), (math.nan, 1.0, Fault.ADAPTER), (math.inf, math.nan, Fault.BASE)],
)
async def test_a_vector_that_is_not_finite_is_an_error(
    with_adapter: float, alone: float, fault: Fault | None
) -> None:
    async def own(
        engine: Any, prompt: Any, params: Any, request_id: str, lora_request: Any = None
    ) -> AsyncGenerator[Any]:
        value = alone if lora_request is None else with_adapter
        yield SimpleNamespace(
            prompt_token_ids=[1], outputs=SimpleNamespace(data=torch.tensor([0.0, value]))
        )

    judge = answering.Judge(own)
    vectors = answering.explaining_vectors(own, judge)
    params = SimpleNamespace(clone=lambda: None)
    try:
        found = [it async for it in vectors(None, "text", params, "r", lora_request=LORA)]
    except GenerationError as error:
        assert fault_in(str(error)) is fault
    else:
        assert (len(found), fault) == (1, None)


SAID = json.dumps({"error": {"message": sentence(Fault.ADAPTER), "code": 500}})


async def events(*given: str) -> AsyncGenerator[str]:
    for event in given:
        yield event


async def test_messages_say_the_words_of_an_error() -> None:
    async def vllms(serving: Any, generator: Any) -> AsyncGenerator[str]:
        try:
            async for event in generator:
                yield event
        except Exception as error:  # noqa: BLE001 (as vLLM does)
            yield f"error: {error}"

    converter = answering.with_words(vllms)
    text = 'data: {"choices": [{"delta": {"content": "data: {\\"error\\""}}]}'
    found = [it async for it in converter(None, events(text, f"data: {SAID}\n\n", "more"))]
    assert found == [text, f"error: {sentence(Fault.ADAPTER)}"]


async def test_a_stream_of_responses_ends_with_an_event() -> None:
    async def vllms(generator: Any) -> AsyncGenerator[str]:
        yield "first"
        try:
            raise GenerationError(sentence(Fault.BASE))
        except GenerationError as error:
            yield answering.raised(None, error)

    first, last = [it async for it in answering.ending_with_an_event(vllms)(events())]
    assert first == "first"
    assert fault_in_event(last.encode()) is Fault.BASE


async def test_another_fault_of_such_a_stream_stays_what_it_is() -> None:
    async def vllms(generator: Any) -> AsyncGenerator[str]:
        yield "first"
        raise ValueError("other")

    with pytest.raises(ValueError, match="other"):
        [it async for it in answering.ending_with_an_event(vllms)(events())]


async def test_every_seam_is_there() -> None:
    import inspect

    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses import api_router, serving
    from vllm.v1.engine.async_llm import AsyncLLM

    named = list(inspect.signature(AsyncLLM.generate).parameters)
    assert named[:4] == ["self", "prompt", "sampling_params", "request_id"]
    kind = inspect.signature(AsyncLLM.generate).parameters["lora_request"].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY
    encoded = list(inspect.signature(AsyncLLM.encode).parameters)
    assert encoded[:5] == ["self", "prompt", "pooling_params", "request_id", "lora_request"]
    made = serving.OpenAIServingResponses._convert_generation_error_to_streaming_response
    assert list(inspect.signature(made).parameters) == ["self", "e"]
    converter = inspect.signature(AnthropicServingMessages.message_stream_converter)
    assert list(converter.parameters) == ["self", "generator"]
    assert list(inspect.signature(api_router._convert_stream_to_sse_events).parameters) == [
        "generator"
    ]
