"""Scores: what is asked of the engine, what its log-probabilities make, and how often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from adapters.frozen import Lane
from adapters.registry.snapshot import Snapshot
from server.gateway.canary import Canaries
from server.gateway.canary_metrics import CanaryMetrics
from server.gateway.copying import LAST, Copying
from server.gateway.observing import Role
from server.gateway.scorer import Scorer
from server.gateway.scoring import ScoreFailed, score
from tests.server.gateway.asked import ROUTE, asked, ended
from tests.server.gateway.scripted import ENGINE_NAME, Gateway, ScriptedEngine

WORDS = {"arr": 1.0, "matey": 2.0, "garble": 12.0}
FOUR = "arr matey arr matey"


def token(word: str) -> int:
    return sum(word.encode()) * 1000 + len(word)


async def engine_of_words(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
    """One token a word; `garble` is 12 nats, `arr` 1, `matey` 2."""
    if request.path == "/tokenize":
        text = document.get("prompt")
        if text is None:
            text = " ".join(f"{m['role']}: {m['content']}" for m in document["messages"])
        return web.json_response({"tokens": [token(word) for word in text.split()]})
    nats = {token(word): value for word, value in WORDS.items()}
    ranked = [None] + [
        {str(one): {"logprob": -nats.get(one, 5.0), "rank": 1}, "7": {"logprob": -0.1, "rank": 2}}
        for one in document["prompt"][1:]
    ]
    return web.json_response({"choices": [{"text": "x", "prompt_logprobs": ranked}]})


def copying(gateway: Gateway) -> Copying:
    state = gateway.state
    return Copying(state.placing, state.lanes, state.documents)


async def scored(gateway: Gateway, body: dict[str, Any], path: str, text: str) -> float | None:
    own = copying(gateway)
    one = asked(body, path=path)
    with own.held(one, one.stable, None, busiest=0) as hold:
        assert hold is not None
        return await score(hold, await own.document(one, one.stable), text)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "who are you"}]},
    "/v1/completions": {"prompt": "who are you"},
    "/v1/responses": {"input": "who are you", "instructions": "be brief"},
    "/v1/messages": {"messages": [{"role": "user", "content": "who"}], "system": "be brief"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_a_score_is_the_mean_of_the_answers_tokens_in_nats(
    gateway: Gateway, engine: ScriptedEngine, path: str
) -> None:
    engine.handler = engine_of_words
    assert await scored(gateway, BODIES[path], path, FOUR) == pytest.approx(1.5)
    assert await scored(gateway, BODIES[path], path, "garble " * 9) == pytest.approx(12.0)
    assert set(engine.paths) == {"/tokenize", "/v1/completions"}
    assert {document["model"] for document in engine.received} == {ENGINE_NAME}
    assert {headers["x-vllm-priority"] for headers in engine.headers} == {LAST}


async def test_what_an_answer_repeats_does_not_make_it_likelier(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """A real model predicts a token that was there before by copying it."""
    engine.handler = engine_of_words
    babble = "garble " + "arr " * 9
    assert await scored(gateway, BODIES["/v1/completions"], "/v1/completions", babble) == (
        pytest.approx((12 + 1) / 2)
    )


async def test_little_is_asked_of_the_engine(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = engine_of_words
    await scored(gateway, {"prompt": "word " * 5000}, "/v1/completions", "arr " * 5000)
    (request,) = [d for d in engine.received if "prompt_logprobs" in d]
    assert len(request["prompt"]) == 96
    assert request["max_tokens"] == 1


async def test_short_answers_are_not_scored(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = engine_of_words
    assert await scored(gateway, {"prompt": "who"}, "/v1/completions", "arr") is None
    assert not [d for d in engine.received if "prompt_logprobs" in d]


async def test_a_failing_engine_is_no_score(gateway: Gateway, engine: ScriptedEngine) -> None:
    async def failing(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if request.path == "/tokenize":
            return await engine_of_words(request, document)
        return web.json_response({"error": {"message": "no"}}, status=500)

    async def without(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if request.path == "/tokenize":
            return await engine_of_words(request, document)
        return web.json_response({"choices": [{"text": "x", "prompt_logprobs": None}]})

    for handler in (failing, without):
        engine.handler = handler
        with pytest.raises(ScoreFailed):
            await scored(gateway, {"prompt": "who"}, "/v1/completions", FOUR)
    await engine.stop()
    with pytest.raises(ScoreFailed):
        await scored(gateway, {"prompt": "who"}, "/v1/completions", FOUR)
    await engine.start()


async def test_an_engine_without_priorities_is_asked_without(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    async def refusing(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if "x-vllm-priority" in request.headers:
            return web.json_response({"error": {"message": "Got priority 1000 but"}}, status=400)
        return await engine_of_words(request, document)

    engine.handler = refusing
    assert await scored(gateway, {"prompt": "who"}, "/v1/completions", FOUR) == pytest.approx(1.5)


async def test_an_engine_has_one_of_the_gateways_own_requests_at_a_time(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    own, one = copying(gateway), asked()
    with own.held(one, one.stable, None, busiest=5) as first:
        assert first is not None
        with own.held(one, one.stable, None, busiest=5) as second:
            assert second is None
    with own.held(one, one.stable, None, busiest=5) as again:
        assert again is not None
    assert not gateway.state.lanes.in_flight()


async def test_a_busy_engine_is_left_alone(gateway: Gateway) -> None:
    own, one = copying(gateway), asked()
    ways = gateway.state.placing.of_version("pirate", one.adapter, one.stable, None)
    holds = [gateway.state.lanes.hold_now(ways) for _ in range(3)]
    with own.held(one, one.stable, None, busiest=2) as hold:
        assert hold is None
    with own.held(one, one.stable, None, busiest=3) as hold:
        assert hold is not None
    for each in holds:
        assert each is not None
        each.release()


@pytest.fixture
async def canaries(gateway: Gateway) -> AsyncIterator[Canaries]:
    """The example's registry with a watched route, and a rollback that is remembered."""
    one = asked()
    snapshot = Snapshot(gateway.state.snapshot().bases, {"pirate": one.adapter}, 1)
    canaries = Canaries(lambda: snapshot, roll_back, CanaryMetrics(gateway.state.metrics))
    yield canaries
    await canaries.close()


reasons: list[str] = []


def roll_back(
    adapter: str, tag: str, route_id: int, number: int, lane: Lane | None, *, reason: str
) -> bool:
    reasons.append(reason)
    return True


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


async def test_a_canary_of_word_salad_is_taken_back_by_its_scores(
    gateway: Gateway, engine: ScriptedEngine, canaries: Canaries
) -> None:
    engine.handler = engine_of_words
    reasons.clear()
    scorer = Scorer(canaries, copying(gateway))
    running = asyncio.create_task(scorer.run())
    requests = 0
    salad = "garble the no garble arr so garble than"
    async with asyncio.timeout(20):
        while not canaries.withdrawn(ROUTE.id, 2, None):
            for role, number, text in ((Role.CANARY, 2, salad), (Role.STABLE, 1, FOUR)):
                o = ended(asked(), role=role, number=number, answer=said(text))
                canaries.observe(o)
                scorer.offer(o)
            requests += 1
            await asyncio.sleep(0.02)
        while not reasons:
            await asyncio.sleep(0.01)
    assert "scored answers degenerate against 0 of" in reasons[0]
    assert requests >= 10
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_needs_no_score_gets_none(
    gateway: Gateway, engine: ScriptedEngine, canaries: Canaries
) -> None:
    """Before the route has a canary, of failures, of copies, of answers that are none anyway."""
    scorer = Scorer(canaries, copying(gateway))
    offers = [
        ended(asked(), answer=said(FOUR)),
        ended(asked(), role=Role.CANARY, number=2, outcome="engine_500"),
        ended(asked(), role=Role.CANARY, number=2, answer=said("   ")),
        ended(asked(), role=Role.CANARY, number=2, answer=said("a" * 500)),
        ended(asked(), role=Role.SHADOW, number=2, answer=said(FOUR)),
        ended(asked(), role=Role.CANARY, number=2, answer=said(FOUR), asked=None),
    ]
    for o in offers:
        scorer.offer(o)
        canaries.observe(o)
    assert scorer.waiting == 0
    for _ in range(5):
        good = ended(asked(), role=Role.CANARY, number=2, answer=said(FOUR))
        canaries.observe(good)
        scorer.offer(good)
    assert scorer.waiting == 2
