"""The faults of a soak, one after the other, each with what may fail because of it.

A fault is over when its effect is: the server answers again, the disk is free. One that allows
nothing must go unnoticed by every client.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

from demo.prepare import BASE_NAME
from loadtests.soaking.clients import MOVER_TAG, Clients
from loadtests.soaking.jobs import killed_merge
from loadtests.soaking.ledger import CUT, REFUSED, Ledger
from loadtests.soaking.stage import Stage, full
from server.engine.process import session_members

# What a client may see of an engine's end, and of a server's.
ENGINE_FAILS = frozenset({"engine_died", "engine_unavailable", "engine_timeout", "overloaded"})
SERVER_FAILS = frozenset({REFUSED, CUT, "engine_unavailable"})
NOTHING: frozenset[str] = frozenset()
# Seconds in which everything must be as before.
BACK_WITHIN = 150.0
SPARE = "spare"


@dataclass(frozen=True, slots=True)
class Play:
    """Everything that faults act on."""

    stage: Stage
    clients: Clients
    ledger: Ledger
    rng: random.Random


Act = Callable[[Play], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table: how often (by weight), what it explains, what it does.

    `early` ones come in the first third only: a server that is killed tells nothing of its memory.
    """

    weight: int
    allows: frozenset[str]
    act: Act
    early: bool = False
    small_disk: bool = False


async def back(play: Play) -> None:
    """Until an adapter answers again; raises AssertionError when that takes long."""
    deadline = time.monotonic() + BACK_WITHIN
    seen = ""
    while time.monotonic() < deadline:
        try:
            async with asyncio.timeout(60):
                status, code = await play.clients.answer_of("pirate")
            if status == 200:
                return
            seen = f"{status} {code}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            seen = repr(error)
        await asyncio.sleep(0.5)
    raise AssertionError(f"no answer {BACK_WITHIN:g} s later: {seen}")


async def _engine_pid(play: Play) -> int:
    return int((await asyncio.to_thread(play.stage.server.engine))["pid"])


async def _members(play: Play) -> tuple[int, list[int]]:
    """The engine's API server, and vLLM's processes behind it; Python's helpers (of semaphores
    and shared memory) are none of them: nobody waits for those."""
    first = await _engine_pid(play)
    members = await asyncio.to_thread(session_members, first)
    return first, [pid for pid in members if psutil.Process(pid).name().startswith("VLLM")]


async def _killed(play: Play) -> str:
    """The engine's API server dies."""
    pid = await _engine_pid(play)
    os.kill(pid, signal.SIGKILL)
    return await _replaced(play, pid, "killed")


async def _out_of_memory(play: Play) -> str:
    """As the kernel does it: the largest process of the engine, SIGKILL."""
    first, members = await _members(play)
    largest = max(members, key=lambda pid: psutil.Process(pid).memory_info().rss)
    name = psutil.Process(largest).name()
    os.kill(largest, signal.SIGKILL)
    return await _replaced(play, first, f"{name} killed")


async def _hangs(play: Play) -> str:
    """One of the engine's processes stands still."""
    first, members = await _members(play)
    victim = play.rng.choice([first, *members])
    name = psutil.Process(victim).name()
    os.kill(victim, signal.SIGSTOP)
    return await _replaced(play, first, f"{name} stopped")


async def _replaced(play: Play, old: int, what: str) -> str:
    """Until another engine answers."""
    began = time.monotonic()
    while await _engine_or_none(play) in {old, None}:
        if time.monotonic() - began > BACK_WITHIN:
            raise AssertionError(f"{what}: the engine was not replaced in {BACK_WITHIN:g} s")
        await asyncio.sleep(0.2)
    noticed = time.monotonic() - began
    await back(play)
    return f"{what}; replaced after {noticed:.1f} s, answers after {time.monotonic() - began:.1f} s"


async def _engine_or_none(play: Play) -> int | None:
    pid: int | None = (await asyncio.to_thread(play.stage.server.engine))["pid"]
    return pid


async def _server_killed(play: Play) -> str:
    """The gateway dies, and somebody starts it again."""
    server, engine = play.stage.server, await _engine_pid(play)
    server.kill()
    began = time.monotonic()
    while left := await asyncio.to_thread(session_members, engine):
        if time.monotonic() - began > 30:
            raise AssertionError(f"the engine outlived its server: {left}")
        await asyncio.sleep(0.1)
    return await _started_again(play, began)


async def _server_restarted(play: Play) -> str:
    """An orderly stop, and a start: what has begun ends in order."""
    began = time.monotonic()
    code = await asyncio.to_thread(play.stage.server.stop)
    if code != 0:
        raise AssertionError(f"the server's orderly stop exited with {code}")
    return await _started_again(play, began)


async def _started_again(play: Play, began: float) -> str:
    await asyncio.to_thread(play.stage.server.launch)
    await back(play)
    return f"answers after {time.monotonic() - began:.1f} s"


async def _damaged(play: Play) -> str:
    """A bit of a stored adapter turns over before anybody loaded it."""
    stage = play.stage
    source = str(await stage.spare())
    await stage.done("register", source, "--name", SPARE, "--base", BASE_NAME)
    blob = stage.blob(SPARE) / "adapter_model.safetensors"
    position = blob.stat().st_size - 1 - play.rng.randrange(4096)
    _flip(blob, position)
    status, code = await _until_known(play, SPARE)
    verified, out, _ = await stage.cli("verify")
    await stage.done("register", source, "--name", SPARE, "--base", BASE_NAME)
    await _until_lifted(play)
    repaired, _ = await _until_known(play, SPARE)
    await stage.done("rm", SPARE, "--force")
    if status == 200 or verified == 0:
        raise AssertionError(f"damage was served: {status}; verify exited with {verified}: {out}")
    if repaired != 200:
        raise AssertionError(f"after its repair it answers {repaired}")
    return f"{status} {code}, repaired"


def _flip(path: Path, position: int) -> None:
    """The lowest bit of a byte, in place."""
    mode = path.stat().st_mode
    path.chmod(mode | 0o200)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(mode)


async def _until_known(play: Play, name: str) -> tuple[int, str]:
    """The answer once the server has heard of the version."""
    for _ in range(50):
        status, code = await play.clients.answer_of(name)
        if code != "model_not_found":
            break
        await asyncio.sleep(0.2)
    return status, code


async def _until_lifted(play: Play) -> None:
    """The quarantine is written a moment after the answer that it follows from."""
    for _ in range(50):
        code, _, _ = await play.stage.cli("quarantine", SPARE, "--lift")
        if code == 0:
            break
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.5)


async def _full_disk(play: Play) -> str:
    """Nothing can be written for a while; who only asks for answers does not notice."""
    stage = play.stage
    source = str(await stage.spare())
    with full(stage.store):
        code, _, told = await stage.cli("register", source, "--name", SPARE, "--base", BASE_NAME)
        await stage.cli("tag", MOVER_TAG, play.rng.choice(["v1", "v2"]))
        for _ in range(3):
            await play.clients.one("stream")
    if code == 0:
        raise AssertionError("an adapter was registered on a full disk")
    await stage.done("register", source, "--name", SPARE, "--base", BASE_NAME)
    await stage.done("rm", SPARE, "--force")
    return told.strip().splitlines()[-1][:160]


async def _locked(play: Play) -> str:
    """Somebody else holds the registry's lock for a few seconds; a change waits for it."""
    seconds = play.rng.uniform(1, 3)
    holder = sqlite3.connect(play.stage.store / "registry.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        change = asyncio.create_task(play.stage.cli("tag", MOVER_TAG, "v1"))
        await asyncio.sleep(seconds)
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    code, _, told = await change
    if code != 0:
        raise AssertionError(f"a change did not wait for the lock: {told.strip()[-200:]}")
    return f"{seconds:.1f} s"


async def _crowd(play: Play) -> str:
    """Many command lines on the store at the same moment."""
    stage = play.stage
    orders = [("tag", MOVER_TAG, play.rng.choice(["v1", "v2"])) for _ in range(3)]
    reads = [("ls",), ("show", "pirate"), ("history", "mover")]
    await asyncio.gather(*(stage.done(*order) for order in (*orders, *reads)))
    return f"{len(orders) + len(reads)} at once"


async def _burst(play: Play) -> str:
    """Two hundred requests at once: all are answered, or told to come back."""
    await play.clients.burst(200)
    return "200 at once"


async def _merge(play: Play) -> str:
    """A merge is killed at some moment, resumed, and must end as if nothing had been."""
    return await killed_merge(play.stage, play.rng)


async def _idle_connections(play: Play) -> str:
    """Connections on which nothing comes."""
    await asyncio.gather(*(play.clients.one("slow sender") for _ in range(40)))
    return "40 half requests"


KINDS: dict[str, Kind] = {
    "engine killed": Kind(3, ENGINE_FAILS, _killed),
    "engine out of memory": Kind(3, ENGINE_FAILS, _out_of_memory),
    "engine hangs": Kind(5, ENGINE_FAILS, _hangs),
    "server killed": Kind(3, SERVER_FAILS | ENGINE_FAILS, _server_killed, early=True),
    "server restarted": Kind(3, SERVER_FAILS, _server_restarted, early=True),
    "job killed": Kind(3, NOTHING, _merge),
    "blob damaged": Kind(3, NOTHING, _damaged),
    "disk full": Kind(3, NOTHING, _full_disk, small_disk=True),
    "registry locked": Kind(2, NOTHING, _locked),
    "many command lines": Kind(3, NOTHING, _crowd),
    "burst": Kind(2, frozenset({"overloaded"}), _burst),
    "idle connections": Kind(2, NOTHING, _idle_connections),
}


async def play_faults(
    play: Play, seconds: float, tell: Callable[[str], None], only: Collection[str] = ()
) -> None:
    """One fault after the other, with rests, until so many seconds of the soak are over.

    `only`: of these kinds; empty: of all.

    Every kind comes once before any comes twice; what comes twice, and when, is drawn.
    """
    order: list[str] = []
    while play.ledger.now() < seconds:
        early = play.ledger.now() < seconds / 3
        if not order:
            order = _drawn(play, only or KINDS)
        # Those of the first third first, as long as it lasts.
        names = [name for name in order if KINDS[name].early == early] or [
            name for name in order if early or not KINDS[name].early
        ]
        if not names:
            order = []
            continue
        name = names[0] if early else play.rng.choice(names)
        order.remove(name)
        await _one(play, name, tell)
        await asyncio.sleep(play.rng.uniform(5, 15))


def _drawn(play: Play, wanted: Collection[str]) -> list[str]:
    names = [
        name
        for name, kind in KINDS.items()
        if name in wanted and (play.stage.small_disk or not kind.small_disk)
        for _ in range(kind.weight)
    ]
    play.rng.shuffle(names)
    # Every kind once before the rest of the draw.
    first = list(dict.fromkeys(names))
    rest = list(names)
    for name in first:
        rest.remove(name)
    return [*first, *rest]


async def _one(play: Play, name: str, tell: Callable[[str], None]) -> None:
    fault = play.ledger.open(name, KINDS[name].allows)
    try:
        fault.detail = await KINDS[name].act(play)
    except (AssertionError, OSError, aiohttp.ClientError, TimeoutError, psutil.Error) as error:
        fault.problem = f"{type(error).__name__}: {error}"[:600]
    fault.over = play.ledger.now()
    seconds = fault.over - fault.began
    tell(f"{fault.began:6.0f} s  {name}, {seconds:.0f} s: {fault.problem or fault.detail}")
