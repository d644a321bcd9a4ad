"""Requests that find the base's engine dead wait until it is started again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from tests.server.gateway.lane_cases import ask, released, says
from tests.server.gateway.scripted import Gateway, ScriptedEngine


@pytest.fixture(autouse=True)
def hot_engine(engine: ScriptedEngine) -> None:
    engine.handler = says("hot")


async def test_a_request_waits_for_the_base_engine_to_come_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """Refused by a dead engine, it was taken by nobody: it waits as for any start."""
    await engine.stop()
    asking = asyncio.create_task(ask(gateway))
    done, _ = await asyncio.wait({asking}, timeout=0.2)
    assert not done
    await engine.start()
    assert (await asking)[0] == 200
    assert len(engine.received) == 1


async def test_who_waits_too_long_for_the_base_engine_is_told_when_to_come_back(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    await engine.stop()
    status, _, headers = await ask(gateway)
    assert status == 503
    assert int(headers["retry-after"]) > 0
    await engine.start()


async def test_an_engine_whose_core_is_dead_is_asked_once(
    gateway: Gateway, engine: ScriptedEngine
) -> None:
    """vLLM's API server outlives its core for seconds, and answers everybody with an error.

    Who is told so may have killed it: no second try. Nobody else is sent there.
    """

    async def dead(request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        error = {"message": message, "type": "InternalServerError", "code": 500}
        return web.json_response({"error": error}, status=500)

    engine.handler = dead
    assert (await ask(gateway))[0] == 503
    engine.handler = says("hot")
    status, _, headers = await ask(gateway)
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert len(engine.received) == 1
    assert released(gateway)
