"""An engine that tells what it holds, over real HTTP: our routes and vLLM's metrics, scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

ONE, TWO = "1" * 64, "2" * 64
TOLD: dict[str, Any] = {
    "slots": [f"sha256-{ONE}", None, "somebody-elses"],
    "cpu": [f"sha256-{TWO}", f"sha256-{ONE}", "somebody-elses"],
    "cpu_total": 9,
    "pinned": [f"sha256-{ONE}"],
    "loads": 4,
    "load_seconds": 0.5,
    "evictions": 1,
    "swaps": 6,
    "swap_seconds": 0.25,
    "prefetched": 3,
    "overlapped": 2,
    "loaded": {f"sha256-{ONE}": 3, "somebody-elses": 1},
}
METRICS = """# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:num_requests_running{engine="0",model_name="m"} 8.0
"""


class Answers:
    """An engine that answers our routes as it is told; counts how often it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.document: Any = TOLD
        self.asked: list[tuple[str, Any]] = []
        self.told = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.path, body))
        self.told.set()
        return web.json_response(self.document, status=self.status)


@contextlib.asynccontextmanager
async def engine(answers: Answers, socket: Path, *, ours: bool = True) -> AsyncIterator[None]:
    app = web.Application()
    if ours:
        app.router.add_route("*", "/adapterctl/{tail}", answers.answer)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=METRICS)

        app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()
