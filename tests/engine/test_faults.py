"""Killing things. Runs last: each kill costs the start of an engine, and changes process ids."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
import urllib.request
from typing import Any

import openai
import psutil
import pytest

from demo.expectations import EXPECTATIONS, MAX_TOKENS
from loadtests.live import LiveServer, kill_hard, run_cli
from server.engine.process import session_members
from server.engine.transport import EngineAddress, EngineTransport

PROMPT = "What is the capital of France?"


def long_stream(live: LiveServer, model: str = "pirate") -> Any:
    """A stream that would take minutes."""
    return live.client().chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Tell me a very long story."}],
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def assert_all_answer(live: LiveServer) -> None:
    for name, expected in EXPECTATIONS.items():
        answer = live.client().chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        assert expected(answer.choices[0].message.content or "")


async def tokens_made(live: LiveServer) -> float:
    """The engine's own count of all tokens that it has made."""
    transport = EngineTransport(EngineAddress.parse(live.engine()["address"]), 5)
    response = await transport.send("GET", "/metrics", body=None, headers={})
    text = await response.text()
    await transport.close()
    lines = text.splitlines()
    made = [line for line in lines if line.startswith("vllm:generation_tokens_total")]
    return float(made[0].rpartition(" ")[2])


async def test_a_client_that_hangs_up_aborts_the_generation_in_the_engine(
    live: LiveServer,
) -> None:
    stream = await asyncio.to_thread(long_stream, live)
    iterator = iter(stream)
    await asyncio.to_thread(next, iterator)
    before = await tokens_made(live)
    # What was made already may have waited here: read on until there is more. Its end would raise.
    while await tokens_made(live) == before:
        await asyncio.to_thread(next, iterator)
    await asyncio.to_thread(stream.close)
    deadline = time.monotonic() + 10
    # The gauge of running requests stays as it was while nothing runs; the tokens tell.
    made = await tokens_made(live)
    while True:
        await asyncio.sleep(1)
        now = await tokens_made(live)
        if now == made:
            break
        made = now
        assert time.monotonic() < deadline, "the engine still works for a client that is gone"


def waiting_standby(live: LiveServer) -> int:
    """The standby, which is made some time after the last start of an engine."""
    deadline = time.monotonic() + 180
    while (pid := live.standby()) is None:
        assert time.monotonic() < deadline, "no standby is made"
        time.sleep(0.2)
    return pid


def test_an_engine_killed_in_a_stream_comes_back_by_itself(live: LiveServer) -> None:
    standby = waiting_standby(live)
    restarts = live.engine()["restarts"]
    stream = iter(long_stream(live))
    for _ in range(3):
        next(stream)
    processes = live.engine_processes()
    kill_hard(int(live.engine()["pid"]))
    with pytest.raises(openai.APIError, match="died in the middle"):
        for _ in stream:
            pass
    deadline = time.monotonic() + 30
    while live.status("/readyz") == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert live.status("/healthz") == 200
    # Whoever asks now is answered when it is back.
    for _ in itertools.islice(long_stream(live), 3):
        pass
    assert live.status("/readyz") == 200
    # The process that waited for it is the engine now, and so is its forked child: what vLLM
    # wanted of it was what it was made with.
    assert live.engine()["pid"] == standby
    assert "started from nothing" not in (live.store / "logs" / "engine.log").read_text()
    # Whatever is left of the killed engine would hold its memory for ever.
    assert not set(processes) & set(live.engine_processes())
    assert session_members(processes[0]) == []
    assert live.engine()["restarts"] == restarts + 1
    assert_all_answer(live)
    with urllib.request.urlopen(live.url + "/metrics", timeout=5) as response:
        told = f'adapterctl_engine_restarts_total{{base="smollm2"}} {restarts + 1:.1f}'
        assert told.encode() in response.read()


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "out-of-memory"])
def test_a_core_that_hangs_or_is_killed_behind_its_server_is_replaced(
    live: LiveServer, how: signal.Signals
) -> None:
    """vLLM's API server goes on answering its health check. SIGKILL is what the kernel does to the
    largest process when memory is out."""
    restarts = live.engine()["restarts"]
    members = [psutil.Process(pid) for pid in live.engine_processes()]
    core = next(one for one in members if one.name().startswith("VLLM::Engine"))
    stream = iter(long_stream(live))
    for _ in range(3):
        next(stream)
    core.send_signal(how)
    began = time.monotonic()
    with pytest.raises(openai.APIError, match="died in the middle"):
        for _ in stream:
            pass
    # 20 s without a word, which is asked for every 5 s, and again for as long as others compute.
    assert time.monotonic() - began < 120
    for _ in itertools.islice(long_stream(live), 3):
        pass
    assert live.engine()["restarts"] == restarts + 1
    assert not any(one.is_running() for one in members)


def test_a_killed_server_leaves_no_orphan_and_serves_the_same_registry_again(
    live: LiveServer,
) -> None:
    before = run_cli(live.store, "--json", "ls").stdout
    session = int(live.engine()["pid"])
    assert len(session_members(session)) >= 3
    live.kill()
    deadline = time.monotonic() + 15
    while left := session_members(session):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)
    live.launch()
    # Killed again while the engine is importing: nothing may be left then either.
    deadline = time.monotonic() + 30
    while live.engine()["pid"] is None or len(live.engine_processes()) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    session = int(live.engine()["pid"])
    time.sleep(3)
    live.kill()
    deadline = time.monotonic() + 30
    while left := session_members(session):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)
    live.start()
    assert run_cli(live.store, "--json", "ls").stdout == before
    assert run_cli(live.store, "verify").returncode == 0
    assert_all_answer(live)


def test_an_orderly_stop_leaves_nothing(live: LiveServer) -> None:
    session = int(live.engine()["pid"])
    assert live.stop() == 0
    assert session_members(session) == []
    assert list((live.store / "run").glob("server-*.json")) == []
    assert "No server is running" in run_cli(live.store, "engines").stdout
