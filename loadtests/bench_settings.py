"""Engine settings against each other: `python -m loadtests.bench_settings VARIANT VARIANT …`.

A variant is a name and what it is started with beyond what the server chooses by itself:

    'as chosen' 'nobind VLLM_CPU_OMP_THREADS_BIND=nobind' 'blocks --block-size=32'

The word `+merged` starts it as an engine without LoRA, `+together` starts two and measures them
loaded at the same time as well. All engines are started first and wait; then every round measures
each in turn, so that a machine that becomes busier is busier for all. Medians, and ratios against
the first variant.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from adapters.bases.shards import open_base
from adapters.catalog import Catalog
from adapters.models import BaseRecord
from demo.prepare import prepare
from loadtests.bench_start import processor_seconds
from server.engine.capacity import Capacity
from server.engine.command import EngineCommand, engine_command, merged_command
from server.engine.memory import plan_merged
from server.engine.process import EngineProcess, session_members
from server.engine.transport import EngineAddress, EngineTransport
from server.settings import ServeSettings

READY_WITHIN = 200.0
SHORT, LONG = 16, 256


@dataclass(frozen=True)
class Variant:
    """One way to start an engine; `engines` of them share the machine."""

    name: str
    environment: dict[str, str]
    arguments: tuple[str, ...]
    merged: bool
    engines: int

    @classmethod
    def parse(cls, text: str) -> Variant:
        """`NAME [VARIABLE=value] [--flag[=value]] [+merged] [+together]`; sys.exit for others."""
        environment: dict[str, str] = {}
        arguments, words, name = [], set(), []
        for word in shlex.split(text):
            if word.startswith("--"):
                arguments += word.split("=", 1)
            elif word.startswith("+"):
                words.add(word)
            elif "=" in word:
                variable, _, value = word.partition("=")
                environment[variable] = value
            else:
                name.append(word)
        if not name or words - {"+merged", "+together"}:
            sys.exit(f"not a variant: {text!r}")
        return cls(
            name=" ".join(name),
            environment=environment,
            arguments=tuple(arguments),
            merged="+merged" in words,
            engines=2 if "+together" in words else 1,
        )


@dataclass
class Running:
    variant: Variant
    processes: list[EngineProcess] = field(default_factory=list)
    transports: list[EngineTransport] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variants", nargs="+", type=Variant.parse)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="that each stream generates")
    parser.add_argument("--no-prefill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-settings-") as directory:
        store = Path(directory) / "store"
        prepare(store)
        with Catalog.open(store) as catalog:
            base = catalog.base("smollm2")
        bench = Bench(Path(directory), base, options.tokens)
        running = asyncio.run(
            bench.run(
                options.variants, options.rounds, options.streams, prefill=not options.no_prefill
            )
        )
    _print(running)


class Bench:
    def __init__(self, directory: Path, base: BaseRecord, tokens: int):
        self._directory = directory
        self._base = base
        self._tokens = tokens
        self._random = random.Random(0)

    async def run(
        self, variants: Sequence[Variant], rounds: int, streams: Sequence[int], *, prefill: bool
    ) -> list[Running]:
        """Start an engine (or two) for each, measure them in turn, stop them."""
        running = [Running(variant) for variant in variants]
        try:
            began = time.monotonic()
            await asyncio.gather(*(self._start(one) for one in running))
            print(f"{len(running)} started in {time.monotonic() - began:.0f} s", flush=True)
            for one in running:
                await self._decode(one, max(streams), 8, one.transports)
                one.figures.clear()
            for number in range(rounds):
                for one in running:
                    for count in streams:
                        await self._decode(one, count, self._tokens, one.transports[:1])
                        if len(one.transports) > 1:
                            await self._decode(one, count, self._tokens, one.transports)
                    if prefill:
                        await self._prefill(one)
                print(f"round {number + 1} after {time.monotonic() - began:.0f} s", flush=True)
        finally:
            for one in running:
                for transport in one.transports:
                    await transport.close()
                for process in one.processes:
                    await process.stop(5)
        return running

    async def _start(self, one: Running) -> None:
        for _ in range(one.variant.engines):
            command = self._command(one.variant)
            process = await EngineProcess.spawn(command)
            one.processes.append(process)
            transport = EngineTransport(EngineAddress("http://engine", command.socket), 5.0)
            one.transports.append(transport)
            deadline = time.monotonic() + READY_WITHIN
            while not (command.socket.exists() and await transport.healthy(timeout=5)):
                if process.exit_code is not None or time.monotonic() > deadline:
                    tail = command.log.read_text()[-3000:]
                    sys.exit(f"{one.variant.name} did not start:\n{tail}")
                await asyncio.sleep(0.2)

    def _command(self, variant: Variant) -> EngineCommand:
        settings = ServeSettings.model_validate(
            {
                "store": self._directory / "store",
                "base": self._base.name,
                "engine_start": "fork",
                "engine_arguments": (*variant.arguments, "--served-model-name", "bench"),
            }
        )
        name = uuid.uuid4().hex
        socket, log = self._directory / f"{name[:8]}.sock", self._directory / f"{name[:8]}.log"
        if variant.merged:
            path = Path(self._base.path)
            plan = plan_merged(settings, open_base(path))
            command = merged_command(
                settings, path, "sha256:" + "0" * 64, plan, engine_id=name, socket=socket, log=log
            )
        else:
            capacity = Capacity(8, 16, 16)
            command = engine_command(
                settings, self._base, capacity, engine_id=name, socket=socket, log=log
            )
        return replace(command, environment={**command.environment, **variant.environment})

    async def _decode(
        self, one: Running, streams: int, tokens: int, engines: Sequence[EngineTransport]
    ) -> None:
        """Output tokens/s of these engines together with `streams` each, and cores in use."""
        pids = [pid for process in one.processes for pid in session_members(process.pid)]
        before, began = processor_seconds(pids), time.monotonic()
        await asyncio.gather(
            *(self._answer(engine, SHORT, tokens) for engine in engines for _ in range(streams))
        )
        seconds = time.monotonic() - began
        label = f"{streams}" if len(engines) == 1 else f"{len(engines)}x{streams}"
        found = len(engines) * streams * tokens / seconds
        one.figures.setdefault(f"{label} tok/s", []).append(found)
        busy = (processor_seconds(pids) - before) / seconds
        one.figures.setdefault(f"{label} cores", []).append(busy)

    async def _prefill(self, one: Running) -> None:
        """Seconds to the first token of 8 prompts of 256 tokens, median."""
        firsts = await asyncio.gather(*(self._answer(one.transports[0], LONG, 1) for _ in range(8)))
        one.figures.setdefault("8x256 s", []).append(median(firsts))

    async def _answer(self, transport: EngineTransport, prompt: int, tokens: int) -> float:
        """Seconds to the first token of one streamed answer, read to its end."""
        body = {
            "model": "bench",
            "prompt": [self._random.randrange(100, 40_000) for _ in range(prompt)],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"content-type": "application/json"}
        began, first = time.monotonic(), 0.0
        async with await transport.send(
            "POST", "/v1/completions", body=json.dumps(body).encode(), headers=headers
        ) as response:
            if response.status != 200:
                sys.exit(f"the engine answered {response.status}: {await response.text()}")
            while await response.read_some():
                first = first or time.monotonic() - began
        return first


def _print(running: list[Running]) -> None:
    # Those measured as a pair have more figures than the others.
    first = max(running, key=lambda one: len(one.figures))
    names = list(first.figures)
    print(f"\nmedians of {len(first.figures[names[0]])}; in brackets against the first")
    print(f"{'':26}" + "".join(f"{name:>18}" for name in names))
    for one in running:
        cells = []
        for name in names:
            if name not in one.figures:
                cells.append("")
                continue
            value, reference = median(one.figures[name]), median(first.figures[name])
            digits = 0 if name.endswith("tok/s") else 2
            cells.append(f"{value:>10.{digits}f} ({value / reference:.2f})")
        print(f"{one.variant.name:26}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
