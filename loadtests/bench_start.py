"""How long an engine takes to start: `python -m loadtests.bench_start [--lane merged]`.

The three ways of the setting `engine_start`, one after the other in every round so that a machine
that becomes busier is busier for all. An engine counts as started when /health answers. Wall time
means little where others compute too, so the processor time (user and system) of the engine's
processes is given as well; for a standby it is the time from being given the model. Every engine
answers the same prompts greedily, and the answers must be the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from adapters.bases.shards import open_base
from adapters.catalog import Catalog
from adapters.models import BaseRecord
from demo.prepare import prepare
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand, engine_command, merged_command
from server.engine.memory import plan_merged
from server.engine.process import EngineProcess, session_members
from server.engine.standby import StandbySpawner
from server.engine.transport import EngineAddress, EngineTransport
from server.settings import ServeSettings

WAYS = ("spawn", "fork", "standby")
PROMPTS = ("The capital of France is", "To make tea, first", "def add(a, b):")
TOKENS = 32
READY_WITHIN = 600.0
MIB = 1024**2


@dataclass(frozen=True)
class Start:
    """One start: seconds until it answered, processor seconds of it, memory then in MiB; and the
    processor time of a token after that, in milliseconds."""

    seconds: float
    processor: float
    memory: float
    token: float
    answers: tuple[str, ...]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lane", choices=("hot", "merged"), default="hot")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="for vLLM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-start-") as directory:
        store = Path(directory) / "store"
        prepare(store)
        with Catalog.open(store) as catalog:
            base = catalog.base("smollm2")
        bench = _Bench(Path(directory), base, options.lane, options.arguments)
        starts = asyncio.run(bench.run(options.ways, options.rounds))
    _print(starts)
    answers = {start.answers for found in starts.values() for start in found}
    if len(answers) != 1:
        sys.exit(f"the answers differ: {json.dumps(sorted(answers), indent=2)}")
    print("greedy answers: the same in every start")


class _Bench:
    def __init__(self, directory: Path, base: BaseRecord, lane: str, arguments: Sequence[str]):
        self._directory = directory
        self._base = base
        self._lane = lane
        self._arguments = tuple(arguments)

    async def run(self, ways: Sequence[str], rounds: int) -> dict[str, list[Start]]:
        starts: dict[str, list[Start]] = {way: [] for way in ways}
        spawner = StandbySpawner(self._directory / "standby.log", settle=1e9)
        try:
            if "standby" in ways:
                await self._make_standby(spawner)
            for number in range(rounds):
                for way in ways:
                    start = await self._start(spawner, way)
                    starts[way].append(start)
                    print(
                        f"round {number + 1}, {way}: {start.seconds:.1f} s, "
                        f"{start.processor:.1f} s of processor time",
                        flush=True,
                    )
                    if way == "standby" and number + 1 < rounds:
                        await self._make_standby(spawner)
        finally:
            await spawner.close()
        return starts

    async def _make_standby(self, spawner: StandbySpawner) -> None:
        """Have one wait, whatever it takes: that is not what is measured."""
        began = time.monotonic()
        spawner.prepare(self._command("standby"))
        while not spawner.ready:
            await asyncio.sleep(0.1)
        assert spawner.pid is not None
        print(
            f"standby ready after {time.monotonic() - began:.1f} s, "
            f"{processor_seconds([spawner.pid]):.1f} s of processor time, "
            f"{_memory([spawner.pid]):.0f} MiB"
        )

    async def _start(self, spawner: StandbySpawner, way: str) -> Start:
        command = self._command(way)
        waiting = spawner.pid if way == "standby" else None
        had = processor_seconds([waiting]) if waiting is not None else 0.0
        began = time.monotonic()
        process = await spawner.spawn(command)
        if way == "standby" and process.pid != waiting:
            sys.exit("the standby was not taken")
        transport = EngineTransport(EngineAddress("http://engine", command.socket), 5.0)
        try:
            await _until_ready(process, transport, command)
            seconds = time.monotonic() - began
            members = session_members(process.pid)
            processor, memory = processor_seconds(members) - had, _memory(members)
            await self._answer(transport, PROMPTS[0])  # what is made at the first request only
            before = processor_seconds(members)
            answers = [await self._answer(transport, prompt) for prompt in PROMPTS]
            token = (processor_seconds(members) - before) / (TOKENS * len(PROMPTS)) * 1000
            return Start(seconds, processor, memory, token, tuple(answers))
        finally:
            await transport.close()
            await process.stop(20)

    async def _answer(self, transport: EngineTransport, prompt: str) -> str:
        body = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        headers = {"content-type": "application/json"}
        async with await transport.send(
            "POST", "/v1/completions", body=json.dumps(body).encode(), headers=headers
        ) as response:
            return str((await response.json())["choices"][0]["text"])

    def _command(self, way: str) -> EngineCommand:
        settings = ServeSettings.model_validate(
            {
                "store": self._directory / "store",
                "base": self._base.name,
                "engine_start": way,
                "engine_arguments": (*self._arguments, "--served-model-name", "bench"),
            }
        )
        socket, log = self._directory / "engine.sock", self._directory / f"{way}.log"
        engine_id = uuid.uuid4().hex
        if self._lane == "hot":
            capacity = Capacity(8, 16, 16)
            return engine_command(
                settings, self._base, capacity, engine_id=engine_id, socket=socket, log=log
            )
        path = Path(self._base.path)
        return merged_command(
            settings,
            path,
            "sha256:" + "0" * 64,
            plan_merged(settings, open_base(path)),
            engine_id=engine_id,
            socket=socket,
            log=log,
        )


async def _until_ready(
    process: EngineProcess, transport: EngineTransport, command: EngineCommand
) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not (command.socket.exists() and await transport.healthy(timeout=5)):
        if process.exit_code is not None or time.monotonic() > deadline:
            sys.exit(f"the engine did not start:\n{command.log.read_text()[-3000:]}")
        await asyncio.sleep(0.1)
    process.became_ready = True


def processor_seconds(pids: Sequence[int]) -> float:
    """Seconds that processes and their ended children have computed."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += sum(psutil.Process(pid).cpu_times()[:4])
    return total


def _memory(pids: Sequence[int]) -> float:
    """MiB of processes, shared pages counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            total += psutil.Process(pid).memory_full_info().pss
    return total / MIB


def _print(starts: dict[str, list[Start]]) -> None:
    print(f"\n{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; medians")
    print(
        f"{'':10}{'start':>9}{'ratio':>7}{'processor':>12}{'ratio':>7}{'memory':>11}{'token':>10}"
    )
    first = next(iter(starts.values()))
    wall, processor = median(s.seconds for s in first), median(s.processor for s in first)
    for way, found in starts.items():
        seconds = median(start.seconds for start in found)
        computed = median(start.processor for start in found)
        memory = median(start.memory for start in found)
        token = median(start.token for start in found)
        print(
            f"{way:10}{seconds:>7.1f} s{seconds / wall:>7.2f}{computed:>10.1f} s"
            f"{computed / processor:>7.2f}{memory:>7.0f} MiB{token:>7.0f} ms"
        )


if __name__ == "__main__":
    main()
