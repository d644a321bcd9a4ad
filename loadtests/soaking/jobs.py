"""A merge in a soak: killed on its way, resumed, finished, looked at, removed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from typing import Any

import psutil

from loadtests.soaking.stage import Stage

MERGED = "soak-merged"
ENDS_WITHIN = 240.0


async def killed_merge(stage: Stage, rng: random.Random) -> str:
    """Order a merge, kill its process at a random moment, have it done all the same.

    Raises AssertionError where it does not get done.
    """
    name = f"{MERGED}-{rng.randrange(1 << 30):x}"
    ordered = await stage.done("--json", "merge", "support", "--name", name, "--detach")
    job = str(json.loads(ordered)["id"])
    wait = rng.uniform(0.5, 8)
    await asyncio.sleep(wait)
    killed = await asyncio.to_thread(_kill, job)
    began = time.monotonic()
    while (state := (await _job(stage, job))["state"]) not in {"succeeded", "failed", "cancelled"}:
        if time.monotonic() - began > ENDS_WITHIN:
            raise AssertionError(f"job {job} is {state} after {ENDS_WITHIN:g} s")
        if state == "interrupted":
            # Perhaps a server that started just now was quicker.
            await stage.cli("jobs", "resume", job)
        await asyncio.sleep(1)
    if state != "succeeded":
        raise AssertionError(f"job {job} ended {state}: {await stage.cli('jobs', 'logs', job)}")
    await stage.done("show", name)
    await stage.done("rm", name, "--force")
    await stage.done("jobs", "rm", job)
    await stage.done("gc")
    return f"{'killed' if killed else 'done'} after {wait:.1f} s, done"


async def _job(stage: Stage, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await stage.done("--json", "jobs", "show", job))
    return found


def _kill(job: str) -> bool:
    """SIGKILL for the process of a job; False where it has ended."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            line = process.cmdline()
            if "quantize.job" in line and job in line:
                process.kill()
                return True
    return False
