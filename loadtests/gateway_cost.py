"""Processor time of the gateway: `python -m loadtests.gateway_cost`.

The real gateway process, in front of an engine without a model (`loadtests/fast_engine.py`), which
streams to 16 clients in steps as vLLM does. Printed: microseconds of the gateway's processor for an
event of a stream, and for a request. `--profile FILE` has it run under cProfile, which makes
everything slower and writes FILE when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import aiohttp

from adapters.catalog import Catalog
from demo.base import DEFAULT_BASE
from loadtests.fast_engine import MODEL
from loadtests.live import ADAPTERCTL, LiveServer

_PROFILED = """
import cProfile, sys
cProfile.run("import server.cli.main as program; program.main()", sys.argv.pop(1))
"""


def _program(profile: Path | None) -> tuple[str, ...]:
    if profile is None:
        return ADAPTERCTL
    return (sys.executable, "-c", _PROFILED, str(profile.absolute()))


def processor(pid: int) -> float:
    """Seconds of processor time that a process's event loop has had, to the nanosecond."""
    # What psutil reads is counted in hundredths of a second.
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def streams(client: aiohttp.ClientSession, url: str, count: int, tokens: int) -> None:
    """Read `count` streams at once to their ends."""

    async def one() -> None:
        body = {"model": MODEL, "prompt": "hello", "max_tokens": tokens, "stream": True}
        async with client.post(f"{url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            data = await response.read()
        assert data.count(b'"text":" word"') == tokens
        assert data.endswith(b"data: [DONE]\n\n")

    await asyncio.gather(*(one() for _ in range(count)))


async def requests(client: aiohttp.ClientSession, url: str, count: int) -> None:
    """`count` answers as a whole, one after another."""
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 1}
    for _ in range(count):
        async with client.post(f"{url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()


async def measure(url: str, pid: int, options: argparse.Namespace) -> dict[str, float]:
    """Microseconds of processor time: medians over the rounds."""
    event, request, stream = [], [], []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await streams(client, url, options.streams, 10)
        await requests(client, url, 50)
        for _ in range(options.rounds):
            marks = [processor(pid)]
            await streams(client, url, options.streams, options.tokens)
            marks.append(processor(pid))
            # The same without their events: what is left is what a stream costs by itself.
            await streams(client, url, options.streams * 8, 1)
            marks.append(processor(pid))
            await requests(client, url, options.requests)
            marks.append(processor(pid))
            long, short, whole = (b - a for a, b in pairwise(marks))
            stream.append(short / (options.streams * 8))
            event.append((long - stream[-1] * options.streams) / (options.streams * options.tokens))
            request.append(whole / options.requests)
    found = {"event": event, "stream": stream, "request": request}
    return {what: statistics.median(values) * 1e6 for what, values in found.items()}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=5.0)
    parser.add_argument("--profile", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, socket = Path(folder) / "store", Path(folder) / "engine.sock"
        with Catalog.init(store) as catalog:
            catalog.base_add(MODEL, DEFAULT_BASE)
        engine = subprocess.Popen(
            [
                *(sys.executable, "-m", "loadtests.fast_engine"),
                socket,
                f"--step-ms={options.step_ms}",
            ]
        )
        live = LiveServer(
            *(store, "--base", MODEL, "--port", "0", "--engine-url", f"unix:{socket}"),
            program=_program(options.profile),
        )
        try:
            live.start()
            result = asyncio.run(measure(live.url, live.pid, options))
        finally:
            live.stop()
            engine.kill()
            engine.wait()
    for what, microseconds in result.items():
        print(f"µs of the gateway's processor for a {what}: {microseconds:.1f}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
