"""A real server under load while things break: `python -m loadtests.soak --minutes 30`.

A real engine on the demo base, a store of its own, clients of ten kinds, and random faults, one
after the other (loadtests/soaking/faults.py). Every failure that a client sees must be explained by
a fault that was under way; every answer must be that of the adapter which was asked. At the end the
registry must verify, and nothing be held or left over. Exits 1 where anything of that is not so.

With the right to mount (root) the store is on a small disk in memory, which is filled now and then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import shutil
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from adapters.errors import AdapterctlError
from loadtests.live import LiveServer
from loadtests.soaking.clients import Clients
from loadtests.soaking.faults import BACK_WITHIN, KINDS, Play, back, play_faults
from loadtests.soaking.ledger import Ledger
from loadtests.soaking.sampling import Sample, growth, sample_until_cancelled
from loadtests.soaking.stage import Stage, small_disk
from server.engine.process import session_members

DISK_MIB = 1400
# Seconds after which an engine is taken to hang: short, so that a soak has many of them.
HANG_TIMEOUT = 20
_HELD = re.compile(
    r"^(adapterctl_requests_in_flight|adapterctl_queue_requests)"
    r"(?:\{[^}]*\})? ([0-9.e+-]+)$",
    re.MULTILINE,
)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=options.dir) as directory:
        root = Path(directory)
        try:
            report = _on_disk(root, options)
        except AdapterctlError as error:
            sys.stderr.write(f"{error.message}\n")
            return error.exit_code
    text = json.dumps(report, indent=1)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    good = not report["problems"] and not report["unexplained"]
    print("held" if good else "NOT held: see problems and unexplained", file=sys.stderr)
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long faults are made")
    parser.add_argument("--seed", type=int, default=0, help="which faults and clients")
    parser.add_argument("--clients", type=int, default=6, help="clients at the same time")
    parser.add_argument(
        "--fault", action="append", default=[], choices=KINDS, help="only these; default: all"
    )
    parser.add_argument("--json", type=Path, help="a file for the report")
    parser.add_argument("--logs", type=Path, help="a directory that keeps the logs")
    parser.add_argument("--dir", type=Path, help="a directory for the store; default: temporary")
    return parser


def _on_disk(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        mounted = os.geteuid() == 0
        if mounted:
            stack.enter_context(small_disk(root / "disk", DISK_MIB))
        store = root / "disk" / "store"
        store.parent.mkdir(exist_ok=True)
        port = _free_port()
        server = LiveServer(
            store,
            *("--base", "smollm2", "--port", str(port), "--slots", "8"),
            *("--hang-timeout", str(HANG_TIMEOUT), "--write-timeout", "10"),
            # A stream that is read slowly takes half a minute.
            *("--stop-timeout", "45"),
            log=root / "serve.log",
        )
        stage = Stage(root, store, server, small_disk=mounted)
        stage.fill()
        server.start()
        try:
            return asyncio.run(_soak(stage, options))
        finally:
            if server.running:
                server.kill()
            if options.logs is not None:
                shutil.copytree(store / "logs", options.logs, dirs_exist_ok=True)
                shutil.copy(root / "serve.log", options.logs)


async def _soak(stage: Stage, options: argparse.Namespace) -> dict[str, Any]:
    ledger, rng = Ledger(), random.Random(options.seed)
    clients = Clients(stage.server.url, ledger, random.Random(options.seed + 1))
    play = Play(stage, clients, ledger, rng)
    samples: list[Sample] = []
    seconds = options.minutes * 60
    over = asyncio.Event()
    sampling = asyncio.create_task(sample_until_cancelled(stage.server, ledger, samples))
    asking = [asyncio.create_task(clients.run(over.is_set)) for _ in range(options.clients)]
    moving = asyncio.create_task(_move_tags(play, over))
    await play_faults(play, seconds, _tell, options.fault)
    # A while without faults: what is held then is held for ever.
    await asyncio.sleep(min(20.0, seconds / 4))
    over.set()
    await asyncio.gather(*asking, moving)
    sampling.cancel()
    await _judge_end(play)
    return {
        "seed": options.seed,
        "minutes": round(ledger.now() / 60, 1),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "small_disk": stage.small_disk,
        **ledger.summary(),
        "growth": growth(samples),
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _move_tags(play: Play, over: asyncio.Event) -> None:
    """All the time one tag is moved, and an adapter comes and goes."""
    number = 0
    while not over.is_set():
        number += 1
        order = ["tag", "mover:prod", f"v{1 + number % 2}"]
        with contextlib.suppress(TimeoutError):
            code, _, told = await play.stage.cli(*order)
            # A full disk and a lock that is held long are said so; anything else is a mistake.
            if code != 0 and "disk" not in told and "busy" not in told and "space" not in told:
                play.ledger.problems.append(f"`{' '.join(order)}`: {told.strip()[-200:]}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), 4)


async def _judge_end(play: Play) -> None:
    """Nothing is held, everything verifies, and the server leaves nothing; problems are noted."""
    stage, problems = play.stage, play.ledger.problems
    try:
        await back(play)
        async with asyncio.timeout(BACK_WITHIN):
            while held := await asyncio.to_thread(_held, stage.server.url):
                await asyncio.sleep(0.5)
    except TimeoutError:
        problems.append(f"still held at the end: {held}")
    except AssertionError as error:
        problems.append(f"at the end: {error}")
    await stage.done("gc")
    code, out, told = await stage.cli("verify")
    if code != 0:
        problems.append(f"verify: {out.strip()[-300:]} {told.strip()[-300:]}")
    engine = int((await asyncio.to_thread(stage.server.engine))["pid"] or 0)
    code = await asyncio.to_thread(stage.server.stop)
    if code != 0:
        problems.append(f"the last stop exited with {code}")
    if left := session_members(engine):
        problems.append(f"left behind by the engine: {left}")
    for directory in (stage.store / "staging", stage.store / "run"):
        if directory.is_dir() and (found := sorted(path.name for path in directory.iterdir())):
            problems.append(f"left in {directory.name}: {found[:5]}")


def _held(url: str) -> list[str]:
    """Gauges of the server that count what is under way, and are not 0."""
    with urllib.request.urlopen(url + "/metrics", timeout=10) as response:
        text = response.read().decode()
    return [match[0] for match in _HELD.finditer(text) if float(match[2]) != 0]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
