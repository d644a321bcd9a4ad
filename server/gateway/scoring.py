"""How likely the stable version finds an answer: fluent nonsense has no other mark.

An adapter of garbage weights answers in words, neither empty nor in a loop. The version that is
known to be good can tell: it finds them as unlikely as tokens drawn at random. The score of an
answer is the mean negative log-probability, given the end of its prompt, of those of its tokens
that it has for the first time: a token that was there before is predicted by mere copying, however
absurd it is, so babble of few words would score better than honest prose. Done off the request
path, one at a time and seldom (`scorer`).
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from adapters.errors import AdapterctlError
from server.gateway.body import parse_object
from server.gateway.copying import send_last
from server.gateway.lanes import Hold

# Tokens of the prompt's end and of the answer's beginning that are looked at. What is cut away is
# cut away of every answer alike; so short, a score costs what the shortest request does.
PROMPT_TOKENS = 64
ANSWER_TOKENS = 32
# Fewer tell nothing.
FEWEST_TOKENS = 4
TIMEOUT = 60.0
# Words in no order: what nonsense scores with this version, in any tokenizer.
SALAD = (
    "lantern of seldom gravel nine the whether copper sing under yesterday a fraction penguin "
    "loudly because velvet to ladder forty absent and harbour quickly tax marble unless ginger "
    "from orbit shy"
)


class ScoreFailed(Exception):
    """This answer could not be scored; the next may."""


async def score(hold: Hold, document: dict[str, Any], text: str) -> float | None:
    """Nats per new token of `text`, as an answer to `document`, by the version of `hold`.

    None where there is too little to judge. `document` is what an engine would be sent for the
    scoring version. Raises ScoreFailed.
    """
    prompt = await _prompt_tokens(hold, document)
    answer = await _tokens(hold, {"prompt": text, "add_special_tokens": False})
    prompt, answer = prompt[-PROMPT_TOKENS:], answer[:ANSWER_TOKENS]
    if not prompt or len(answer) < FEWEST_TOKENS:
        return None
    body = {"prompt": prompt + answer, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
    answered = await _post(hold, "/v1/completions", body)
    return _mean_nats(answered, prompt, answer)


def _mean_nats(answered: dict[str, Any], prompt: list[int], answer: list[int]) -> float:
    try:
        ranked = answered["choices"][0]["prompt_logprobs"][len(prompt) :]
        first_times: dict[int, float] = {}
        for entry, token in zip(ranked, answer, strict=True):
            first_times.setdefault(token, -float(entry[str(token)]["logprob"]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise ScoreFailed("the engine gave no log-probabilities of the prompt") from None
    if not all(math.isfinite(nats) for nats in first_times.values()):
        raise ScoreFailed("the stable version's own log-probabilities are not finite")
    return math.fsum(first_times.values()) / len(first_times)


async def _prompt_tokens(hold: Hold, document: dict[str, Any]) -> list[int]:
    messages = _conversation(document)
    if messages:
        body: dict[str, Any] = {"messages": messages, "add_generation_prompt": True}
        for name in ("chat_template", "chat_template_kwargs"):
            if document.get(name) is not None:
                body[name] = document[name]
        return await _tokens(hold, body)
    prompt = document.get("prompt")
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return [token for token in prompt if isinstance(token, int)]
    if isinstance(prompt, str):
        return await _tokens(hold, {"prompt": prompt})
    raise ScoreFailed("only conversations and completions of one prompt are scored")


def _conversation(document: dict[str, Any]) -> list[Any]:
    """The messages of a chat, of /v1/responses or of /v1/messages, as a chat has them."""
    said = document.get("messages") or document.get("input")
    if isinstance(said, str):
        said = [{"role": "user", "content": said}]
    if not isinstance(said, list):
        return []
    system = document.get("instructions") or document.get("system")
    return [{"role": "system", "content": system}, *said] if isinstance(system, str) else said


async def _tokens(hold: Hold, body: dict[str, Any]) -> list[int]:
    tokens = (await _post(hold, "/tokenize", body)).get("tokens")
    if not isinstance(tokens, list):
        raise ScoreFailed("the engine gave no tokens")
    return tokens


async def _post(hold: Hold, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(TIMEOUT):
            response = await send_last(hold, path, body, {})
            async with response:
                data = await response.read()
                if response.status != 200:
                    raise ScoreFailed(f"the engine answered {path} with {response.status}")
                return parse_object(data)
    except (OSError, AdapterctlError) as error:
        raise ScoreFailed(f"the engine did not answer {path}: {error}") from error
