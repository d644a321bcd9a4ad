"""Tell an engine that hangs from one that is slow.

vLLM's health check is answered by its API server, which lives on while the core behind it stands
still. So the core and its workers are asked, too: a call that they answer between two steps
(`/adapterctl/alive` in server/vllm_plugin/endpoints.py). No answer for a while is no proof on a
CPU, where one step over a long prompt of a large model may take minutes; but such an engine
computes, and one that hangs does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil

from adapters.bases.engine_limits import on_cpu
from adapters.errors import EngineError
from server.engine.process import session_members
from server.engine.transport import EngineTransport

ALIVE_PATH = "/adapterctl/alive"
# vLLM gives a step so many seconds itself (VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS), then ends.
LONGEST_STEP = 300.0
# Processor seconds a second from which an engine counts as computing. Waiting takes a hundredth; a
# machine that does much else leaves less to it than it would take.
COMPUTES = 0.1
# The API server is there and its core is not; it would end by itself, a dozen seconds later.
DEAD = 503
# The route is not there, or the engine was not started to answer it.
_MISSING = frozenset({404, 405, 501})


async def until_hung(
    transport: EngineTransport,
    session: int,
    *,
    limit: float,
    interval: float,
    patient: bool | None = None,
) -> str:
    """Watch the engine whose processes are the session's; the reason, once it hangs.

    It is asked every `interval` seconds, and has `limit` seconds to answer; where it is `patient`
    (None: on a CPU), up to LONGEST_STEP as long as it computes. A core that has died is found so,
    too. Never returns for an engine that lives, nor for one that cannot be asked.
    """
    patient = on_cpu() if patient is None else patient
    while True:
        began, used = time.monotonic(), await asyncio.to_thread(_processor_seconds, session)
        while (status := await _asked(transport, limit)) is None:
            silent = time.monotonic() - began
            now = await asyncio.to_thread(_processor_seconds, session)
            slow = patient and silent < LONGEST_STEP and now - used >= COMPUTES * silent
            if not slow:
                return f"hangs: its core has not answered for {silent:.0f} s"
        if status == DEAD:
            return "has lost its core"
        if status in _MISSING:
            await asyncio.Event().wait()
        await asyncio.sleep(interval)


async def _asked(transport: EngineTransport, limit: float) -> int | None:
    """The status of the answer; None: silence for `limit` seconds.

    A connection that breaks is no silence: the process ends, or its health check will tell.
    """
    try:
        async with asyncio.timeout(limit):
            response = await transport.send("GET", ALIVE_PATH, body=None, headers={})
            async with response:
                await response.read()
                return response.status
    except TimeoutError:
        return None
    except (EngineError, OSError):
        return 0


def _processor_seconds(session: int) -> float:
    """What the living processes of a session have computed."""
    total = 0.0
    for pid in session_members(session):
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
