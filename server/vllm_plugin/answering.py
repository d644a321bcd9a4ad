"""vLLM's API server says what was wrong where an output was not finite, and whose fault it was.

The engine core ends such a request with an error that has no words (finite.py). Here the base is
asked for one token after the same tokens, without the adapter: if it has an answer, the adapter is
at fault; if it has none, nobody may be blamed for the base. What is found is remembered for a
minute, so that a hundred requests of one adapter cost one look. The sentence is that of
server/engine/not_finite.py on every route; two of vLLM 0.32's lose the words of an error in a
stream, and are mended here.
"""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

import torch
from vllm import SamplingParams
from vllm.exceptions import GenerationError
from vllm.sampling_params import RequestOutputKind

from server.engine.not_finite import Fault, sentence
from server.vllm_plugin.finite import STOPPED

logger = logging.getLogger("vllm.adapterctl.answering")

Stream = AsyncGenerator[Any, None]
# Seconds for which what was found of an adapter is believed.
REMEMBERED = 60.0
_ERROR = 'data: {"error"'


def install() -> None:
    """In the API server, whose modules are imported by the time of this."""
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.v1.engine.async_llm import AsyncLLM

    if hasattr(AsyncLLM.generate, "__wrapped__"):
        return
    judge = Judge(AsyncLLM.generate)
    AsyncLLM.generate = explaining_texts(AsyncLLM.generate, judge)
    AsyncLLM.encode = explaining_vectors(AsyncLLM.encode, judge)
    converter = AnthropicServingMessages.message_stream_converter
    AnthropicServingMessages.message_stream_converter = with_words(converter)
    OpenAIServingResponses._convert_generation_error_to_streaming_response = raised
    events = responses._convert_stream_to_sse_events
    responses._convert_stream_to_sse_events = ending_with_an_event(events)


class Judge:
    """Whose fault it is; `generate` is AsyncLLM's own."""

    def __init__(
        self, generate: Callable[..., Stream], clock: Callable[[], float] = time.monotonic
    ):
        self._generate = generate
        self._clock = clock
        self._guilty: dict[str, float] = {}

    async def error(self, engine: Any, lora: Any, tokens: list[int]) -> GenerationError:
        """What to raise for a request with adapter `lora` (None: the base) that ended at `tokens`,
        its prompt's and those it had generated."""
        fault = Fault.BASE
        if lora is not None:
            now = self._clock()
            self._guilty = {who: at for who, at in self._guilty.items() if now - at < REMEMBERED}
            if lora.lora_name in self._guilty or await self._base_is_well(engine, tokens):
                fault = Fault.ADAPTER
                self._guilty.setdefault(lora.lora_name, now)
        name = "the base" if lora is None else lora.lora_name
        logger.error("the output of %s is not finite: %s", name, fault.value)
        return GenerationError(sentence(fault))

    async def _base_is_well(self, engine: Any, tokens: list[int]) -> bool:
        """Whether the base goes on from `tokens` with something finite."""
        asked = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        most = engine.model_config.max_model_len - 1
        if not tokens:
            # Given as vectors: nothing to ask the base for.
            return True
        prompt = {"prompt_token_ids": tokens[:most]}
        answer = self._generate(engine, prompt, asked, f"base-of-{uuid.uuid4().hex}")
        return STOPPED not in [one.stop_reason async for part in answer for one in part.outputs]


def explaining_texts(original: Callable[..., Stream], judge: Judge) -> Callable[..., Stream]:
    """AsyncLLM.generate that raises GenerationError for a request that was ended so."""

    @functools.wraps(original)
    async def generate(
        engine: Any, prompt: Any, sampling_params: Any, request_id: str, **named: Any
    ) -> Stream:
        pieces = sampling_params.output_kind is RequestOutputKind.DELTA
        generated: list[int] = []
        answer = original(engine, prompt, sampling_params, request_id, **named)
        try:
            async for part in answer:
                for one in part.outputs:
                    if one.stop_reason == STOPPED:
                        tokens = [*(part.prompt_token_ids or ()), *generated, *one.token_ids]
                        raise await judge.error(engine, named.get("lora_request"), tokens)
                    if pieces:
                        generated += one.token_ids
                yield part
        finally:
            await answer.aclose()

    return generate


def explaining_vectors(original: Callable[..., Stream], judge: Judge) -> Callable[..., Stream]:
    """AsyncLLM.encode that raises GenerationError in place of a vector that is not finite.

    A base for vectors generates nothing, so the base is asked for its vector of the same text.
    """

    @functools.wraps(original)
    async def encode(
        engine: Any, prompt: Any, pooling_params: Any, request_id: str, *rest: Any, **named: Any
    ) -> Stream:
        async for part in original(engine, prompt, pooling_params, request_id, *rest, **named):
            if not _finite(part.outputs.data):
                lora = rest[0] if rest else named.get("lora_request")
                fault = Fault.BASE
                if lora is not None:
                    alone = original(
                        engine,
                        {"prompt_token_ids": list(part.prompt_token_ids)},
                        pooling_params.clone(),
                        f"base-of-{uuid.uuid4().hex}",
                    )
                    if [_finite(it.outputs.data) async for it in alone] == [True]:
                        fault = Fault.ADAPTER
                raise GenerationError(sentence(fault))
            yield part

    return encode


def _finite(vector: torch.Tensor) -> bool:
    return bool(torch.isfinite(vector).all())


def with_words(original: Callable[[Any, Stream], Stream]) -> Callable[[Any, Stream], Stream]:
    """AnthropicServingMessages.message_stream_converter that passes the words of an error on.

    vLLM 0.32 takes the event of an error for a damaged piece of a text.
    """

    async def until_error(generator: Stream) -> Stream:
        async for event in generator:
            if event.startswith(_ERROR):
                raise GenerationError(json.loads(event.removeprefix("data: "))["error"]["message"])
            yield event

    @functools.wraps(original)
    def converter(serving: Any, generator: Stream) -> Stream:
        return original(serving, until_error(generator))

    return converter


def raised(serving: Any, error: GenerationError) -> str:
    """OpenAIServingResponses._convert_generation_error_to_streaming_response.

    vLLM 0.32 makes a document of the error that its own types of events refuse, and the connection
    just ends; here the error goes on to `ending_with_an_event`.
    """
    raise error


def ending_with_an_event(original: Callable[[Stream], Stream]) -> Callable[[Stream], Stream]:
    """Responses' stream that ends with OpenAI's event of an error."""

    @functools.wraps(original)
    async def events(generator: Stream) -> Stream:
        try:
            async for event in original(generator):
                yield event
        except GenerationError as error:
            document = {"type": "error", "code": "server_error", "message": str(error)}
            yield f"event: error\ndata: {json.dumps({**document, 'param': None})}\n\n"

    return events
