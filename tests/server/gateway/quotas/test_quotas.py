"""Quotas by themselves, and through the gateway as clients see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from adapters.errors import QuotaExceeded
from adapters.tenants import Quota
from server.gateway.admission.tickets import FREE, Cost
from server.gateway.callers import Caller
from server.gateway.quotas.counters import MemoryCounters
from server.gateway.quotas.metrics import QuotaMetrics
from server.gateway.quotas.quotas import Quotas
from tests.server.gateway.scripted import CHAT, Gateway, ScriptedEngine, answer, chunk, stream

ACME = Caller("acme", 1.0, None)
PATH = "/v1/chat/completions"


class Set:
    """Quotas with a registry to look at."""

    def __init__(self, tenants: Mapping[str, Quota]):
        self.registry = CollectorRegistry()
        metrics = QuotaMetrics(self.registry, lambda tenant: tenant)
        self.quotas = Quotas(MemoryCounters(), metrics, tenants)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"adapterctl_quota_{name}", labels)


def key(quota: Quota, tenant: str = "acme", name: str = "k1") -> Caller:
    return Caller(tenant, 1.0, name, quota=quota)


async def test_without_a_quota_nothing_is_counted() -> None:
    quotas = Set({"beta": Quota(requests_per_minute=1)}).quotas
    assert await quotas.admit(ACME, Cost(10)) is None
    assert await quotas.admit(key(Quota()), Cost(10)) is None


async def test_requests_of_a_minute() -> None:
    made = Set({"acme": Quota(requests_per_minute=2)})
    for left in ("1", "0"):
        grant = await made.quotas.admit(ACME, FREE)
        assert grant is not None
        assert grant.headers["x-ratelimit-limit-requests"] == "2"
        assert grant.headers["x-ratelimit-remaining-requests"] == left
        assert grant.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in grant.headers
        grant.end(None)
    with pytest.raises(QuotaExceeded, match="tenant 'acme' has made its 2 requests") as refused:
        await made.quotas.admit(ACME, FREE)
    assert 1 <= (refused.value.retry_after or 0) <= 120
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    assert made.metric("rejections_total", tenant="acme", kind="requests") == 1
    assert made.metric("used_ratio", tenant="acme", kind="requests") == pytest.approx(1, abs=0.1)
    assert made.metric("storage_up", storage="memory") == 1


async def test_a_key_and_its_tenant_both_count_and_a_refusal_costs_nothing() -> None:
    made = Set({"acme": Quota(requests_per_minute=3)})
    first, second = key(Quota(requests_per_minute=2)), key(Quota(requests_per_minute=2), name="k2")
    for caller in (first, first, second):
        assert await made.quotas.admit(caller, FREE) is not None
    with pytest.raises(QuotaExceeded, match="this key has made its 2 requests"):
        await made.quotas.admit(first, FREE)
    for _ in range(3):
        with pytest.raises(QuotaExceeded, match="tenant 'acme'"):
            await made.quotas.admit(second, FREE)
    # The key that its tenant stopped has not used its own up by asking.
    made.quotas.replace({})
    assert await made.quotas.admit(second, FREE) is not None


async def test_everybody_else_has_the_quota_of_the_star() -> None:
    quotas = Set({"*": Quota(requests_per_minute=1), "acme": Quota()}).quotas
    assert await quotas.admit(ACME, FREE) is None
    for tenant in ("beta", "gamma"):
        caller = Caller(tenant, 1.0, None)
        assert await quotas.admit(caller, FREE) is not None
        with pytest.raises(QuotaExceeded, match=f"tenant '{tenant}'"):
            await quotas.admit(caller, FREE)


async def test_at_the_same_time() -> None:
    made = Set({"acme": Quota(concurrent=2)})
    grants = [await made.quotas.admit(ACME, FREE) for _ in range(2)]
    with pytest.raises(QuotaExceeded, match="has 2 requests being answered") as refused:
        await made.quotas.admit(ACME, FREE)
    assert refused.value.retry_after == 1
    assert made.metric("used_ratio", tenant="acme", kind="concurrent") == 1
    assert grants[0] is not None
    grants[0].end(0)
    grants[0].end(0)  # Once is enough.
    await made.quotas.settled()
    assert made.metric("used_ratio", tenant="acme", kind="concurrent") == 0.5
    assert await made.quotas.admit(ACME, FREE) is not None
    with pytest.raises(QuotaExceeded):
        await made.quotas.admit(ACME, FREE)


async def test_a_refusal_by_the_tenant_leaves_the_place_of_the_key() -> None:
    made = Set({"acme": Quota(concurrent=1)})
    mine = key(Quota(concurrent=1), name="mine")
    grant = await made.quotas.admit(key(Quota(concurrent=1)), FREE)
    with pytest.raises(QuotaExceeded, match="tenant 'acme' has 1"):
        await made.quotas.admit(mine, FREE)
    assert grant is not None
    grant.end(0)
    await made.quotas.settled()
    assert await made.quotas.admit(mine, FREE) is not None


async def test_tokens_are_held_back_as_expected_and_charged_as_used() -> None:
    made = Set({"acme": Quota(tokens_per_minute=1000)})
    cost = Cost(prompt_tokens=300, max_tokens=100)
    first = await made.quotas.admit(ACME, cost)
    second = await made.quotas.admit(ACME, cost)
    assert first is not None
    assert second is not None
    assert first.headers["x-ratelimit-remaining-tokens"] == "600"
    assert second.headers["x-ratelimit-remaining-tokens"] == "200"
    with pytest.raises(QuotaExceeded, match="1000 tokens") as refused:
        await made.quotas.admit(ACME, cost)
    assert refused.value.headers["x-ratelimit-remaining-tokens"] == "200"
    assert made.metric("rejections_total", tenant="acme", kind="tokens") == 1
    # Less than expected: there is room again. More: it counts too.
    first.end(50, 10)
    await made.quotas.settled()
    third = await made.quotas.admit(ACME, cost)
    assert third is not None
    third.end(5000, 4700)
    second.end(0)
    await made.quotas.settled()
    with pytest.raises(QuotaExceeded) as refused:
        await made.quotas.admit(ACME, Cost(prompt_tokens=1))
    # Five times a minute's tokens: not before the next minute's end is near.
    assert (refused.value.retry_after or 0) > 30
    assert (made.metric("used_ratio", tenant="acme", kind="tokens") or 0) > 4


async def test_more_than_a_minutes_tokens_must_wait_for_an_unused_quota() -> None:
    made = Set({"acme": Quota(tokens_per_minute=100)})
    huge = Cost(prompt_tokens=500)
    small = await made.quotas.admit(ACME, Cost(prompt_tokens=5, max_tokens=5))
    with pytest.raises(QuotaExceeded):
        await made.quotas.admit(ACME, huge)
    assert small is not None
    small.end(0)
    assert await made.quotas.admit(ACME, huge) is not None
    with pytest.raises(QuotaExceeded):
        await made.quotas.admit(ACME, Cost(prompt_tokens=1, max_tokens=1))


async def test_what_a_tenants_answers_are_like_is_learnt() -> None:
    made = Set({"acme": Quota(tokens_per_minute=10**9)})
    cost = Cost(prompt_tokens=10)
    for _ in range(100):
        grant = await made.quotas.admit(ACME, cost)
        assert grant is not None
        grant.end(1010, 1000)
    grant = await made.quotas.admit(ACME, cost)
    assert grant is not None
    assert 950 < grant.expected <= 1010
    limited = await made.quotas.admit(ACME, Cost(prompt_tokens=10, max_tokens=7, places=2))
    assert limited is not None
    assert limited.expected == 24


async def test_of_many_at_once_as_many_are_admitted_as_may() -> None:
    made = Set({"acme": Quota(requests_per_minute=50, tokens_per_minute=200, concurrent=30)})
    cost = Cost(prompt_tokens=5, max_tokens=5)

    async def ask() -> bool:
        try:
            return await made.quotas.admit(ACME, cost) is not None
        except QuotaExceeded:
            return False

    assert sum(await asyncio.gather(*(ask() for _ in range(100)))) <= 20


# --- through the gateway -------------------------------------------------------------------------


async def ask(gateway: Gateway, tenant: str = "acme", **more: Any) -> tuple[int, Any, Any]:
    async with gateway.post(PATH, json={**CHAT, **more}, headers={"x-tenant": tenant}) as response:
        return response.status, response.headers, await response.text()


async def test_a_client_is_told(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.handler = answer
    gateway.state.quotas.replace({"acme": Quota(requests_per_minute=1, tokens_per_minute=10_000)})
    status, headers, _ = await ask(gateway)
    assert status == 200
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-limit-tokens"] == "10000"
    assert 9000 < int(headers["x-ratelimit-remaining-tokens"]) < 10_000
    status, headers, text = await ask(gateway)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 120
    assert headers["x-ratelimit-remaining-requests"] == "0"
    error = json.loads(text)["error"]
    assert (error["code"], error["type"]) == ("quota_exceeded", "rate_limit_error")
    assert "try again in" in error["message"]
    assert len(engine.received) == 1
    assert (await ask(gateway, "beta"))[0] == 200
    requests = "adapterctl_tenant_requests_total"
    await gateway.settled(requests, 1, tenant="acme", outcome="quota_exceeded")
    rejections = "adapterctl_quota_rejections_total"
    assert gateway.metric(rejections, tenant="acme", kind="requests") == 1


async def test_the_engines_count_is_charged(gateway: Gateway, engine: ScriptedEngine) -> None:
    """Of whole answers and of streams, however they end."""
    quotas = gateway.state.quotas
    quotas.replace({"acme": Quota(tokens_per_minute=10_000)})

    async def used() -> int:
        await quotas.settled()
        grant = await quotas.admit(ACME, FREE)
        assert grant is not None
        grant.end(0)
        return 10_000 - int(grant.headers["x-ratelimit-remaining-tokens"])

    engine.handler = answer
    assert (await ask(gateway))[0] == 200
    assert await used() == 11
    engine.handler = stream
    _, headers, text = await ask(gateway, stream=True)
    assert "x-ratelimit-remaining-tokens" in headers
    assert "[DONE]" in text
    assert await used() == 16

    async def refused(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    engine.handler = refused
    assert (await ask(gateway))[0] == 400
    assert (await ask(gateway, model="nobody"))[0] == 404
    assert await used() == 16


async def test_a_client_that_leaves_pays_for_what_it_saw(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    quotas = gateway.state.quotas
    quotas.replace({"acme": Quota(tokens_per_minute=10_000, concurrent=1)})

    async def endless(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(chunk("a"))
            await asyncio.sleep(0.002)

    engine.handler = endless
    body = {**CHAT, "stream": True}
    async with aiohttp.ClientSession() as client:
        response = await client.post(gateway.url + PATH, json=body, headers={"x-tenant": "acme"})
        for _ in range(10):
            await response.content.readuntil(b"\n\n")
        assert (await ask(gateway))[0] == 429  # One at a time.
        response.close()
    requests = "adapterctl_tenant_requests_total"
    await gateway.settled(requests, 1, tenant="acme", outcome="client_gone")
    await quotas.settled()
    engine.handler = answer
    status, headers, _ = await ask(gateway)
    assert status == 200
    prompt = len(json.dumps(body)) // 4
    assert 10_000 - int(headers["x-ratelimit-remaining-tokens"]) >= prompt + 10
