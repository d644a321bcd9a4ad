"""What PEFT on transformers does with the same adapters and batches, for orientation."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from adapters.catalog import Catalog
from adapters.errors import ToolFailed
from adapters.store.layout import StoreLayout
from demo.prepare import BASE_NAME
from loadtests.compare.session import Session

PEFT = "PEFT"
_WITHIN = 180.0
_AT_ONCE, _PROMPT, _SHORT, _TOKENS = 8, 256, 16, 32


class Runner:
    """The process that has model and adapters in memory."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log

    async def read(self) -> dict[str, Any]:
        """Its next line. Raises ToolFailed when it has died or says nothing for minutes."""
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _WITHIN)
            answer: dict[str, Any] = json.loads(line)
        except (TimeoutError, ValueError) as error:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ToolFailed(f"PEFT's process failed: {' / '.join(tail)}") from error
        return answer

    async def batch(
        self, prompt_tokens: int, tokens: int, adapters: str | Sequence[str] | None, seed: str
    ) -> float:
        """Seconds of one batch of eight; see peft_runner."""
        assert self._process.stdin is not None
        random = Random(seed)
        prompts = [random.choices(range(1000, 30000), k=prompt_tokens) for _ in range(_AT_ONCE)]
        line = json.dumps({"prompts": prompts, "tokens": tokens, "adapters": adapters})
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()
        return float((await self.read())["seconds"])


@asynccontextmanager
async def running(store: Path, names: Sequence[str], log: Path) -> AsyncIterator[Runner]:
    """PEFT with the stored adapters `names`, from start to end."""
    layout = StoreLayout(store)
    with Catalog.open(store) as catalog:
        base = catalog.base(BASE_NAME).path
        given = [f"{name}={layout.blob(catalog.show(name).digest)}" for name in names]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtests.compare.peft_runner", base, *given),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
            env=environment,
        )
    runner = Runner(process, log)
    try:
        await runner.read()
        yield runner
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def measure_peft(
    session: Session, store: Path, low: Sequence[str], samples: dict[str, list[float]]
) -> None:
    """Three rounds (quick: one) of base, one adapter and four mixed."""
    kinds: dict[str, str | list[str] | None] = {
        "base": None,
        "1 adapter": low[0],
        "4 adapters": [low[index % 4] for index in range(_AT_ONCE)],
    }
    async with running(store, low[:4], session.place("peft") / "peft.log") as runner:
        for told, adapters in kinds.items():
            await runner.batch(_SHORT, 2, adapters, f"warm {told}")
        for number in range(1 if session.quick else 3):
            session.say(f"kernels: PEFT, round {number + 1}")
            for told, adapters in kinds.items():
                seed = f"{told} {number}"
                seconds = await runner.batch(_PROMPT, 1, adapters, seed)
                samples.setdefault(f"first token: {PEFT}, {told}", []).append(seconds)
                seconds = await runner.batch(_SHORT, _TOKENS, adapters, seed)
                rate = _AT_ONCE * _TOKENS / seconds
                samples.setdefault(f"decode: {PEFT}, {told}", []).append(rate)
