"""A server that speaks OpenAI's API and has no model: `python -m loadtests.scripted`.

It prints its URL and serves until its standard input ends. The load generator is measured and
tested against it. What a model's name says happens: `refused` answers 429 with Retry-After,
`failing` 500, `breaking` ends the stream in its middle, `wrong` sends an error in it, `empty` sends
no token, `stalling` sends one and no more, `countless` sends no usage, `paired` two tokens a
chunk; every other name is answered in full. A word is a token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop
from aiohttp import web

BASE = "scripted"
FRAME = 5
_WORD = " word"


class Scripted:
    """`interval` seconds between a stream's tokens, `first` before its first one; `at_once`: how
    many are answered at a time (None: all)."""

    def __init__(
        self, models: Sequence[str], interval: float, first: float, at_once: int | None
    ) -> None:
        self.models = tuple(models)
        self.interval = interval
        self.first = first
        self._turns = asyncio.Semaphore(at_once) if at_once else None
        self.seen: list[dict[str, Any]] = []

    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 26)
        application.add_routes(
            [
                web.get("/v1/models", self.list),
                web.post("/tokenize", self.tokenize),
                web.post("/v1/chat/completions", self.answer),
                web.post("/v1/completions", self.answer),
                web.get("/seen", self.tell),
            ]
        )
        return application

    async def list(self, request: web.Request) -> web.Response:
        data = [{"id": BASE, "object": "model", "parent": None}]
        data += [{"id": name, "object": "model", "parent": BASE} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": _tokens(await request.json())})

    async def tell(self, request: web.Request) -> web.Response:
        """What was asked so far, for tests."""
        return web.json_response(self.seen)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append({"headers": dict(request.headers), **body})
        if self._turns is None:
            return await self._answer(request, body)
        async with self._turns:
            return await self._answer(request, body)

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        model = str(body.get("model"))
        if model == "refused":
            error = {"error": {"message": "try again later", "code": "rate_limited"}}
            return web.json_response(error, status=429, headers={"Retry-After": "0.2"})
        if model == "failing":
            return web.json_response({"error": {"message": "it failed"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.headers["x-adapterctl-version"] = f"{model}:v1"
        await response.prepare(request)
        try:
            await self._stream(response, body, model)
        except ConnectionResetError:
            # The client is gone, or is to find that the server is.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any], model: str) -> None:
        chat = "messages" in body
        count = int(body.get("max_tokens", 16))
        if self.first:
            await asyncio.sleep(self.first)
        if chat:
            await response.write(_event({"choices": [{"delta": {"role": "assistant"}}]}))
        each = 2 if model == "paired" else 1
        word = _event({"choices": [_choice(chat, _WORD * each)]})
        for index in range(0 if model == "empty" else count // each):
            if index == 1 and model == "breaking":
                raise ConnectionResetError
            if index == 1 and model == "wrong":
                await response.write(_event({"error": {"message": "the engine died"}}))
                return
            if index == 1 and model == "stalling":
                await asyncio.sleep(60)
            await response.write(word)
            await asyncio.sleep(self.interval)
        await response.write(
            _event({"choices": [{**_choice(chat, ""), "finish_reason": "length"}]})
        )
        if model != "countless" and (body.get("stream_options") or {}).get("include_usage"):
            made = 0 if model == "empty" else count
            usage = {"prompt_tokens": _tokens(body), "completion_tokens": made}
            await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")


def _choice(chat: bool, text: str) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": text}} if chat else {"index": 0, "text": text}


def _event(chunk: dict[str, Any]) -> bytes:
    # As large as vLLM's own, which carry an id, a time and the model's name.
    chunk = {"id": "chatcmpl-" + "0" * 32, "created": 1700000000, "model": BASE, **chunk}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _tokens(body: dict[str, Any]) -> int:
    if "messages" in body:
        return FRAME + sum(len(str(m["content"]).split()) for m in body["messages"])
    return len(str(body.get("prompt", "")).split())


async def _serve(options: argparse.Namespace) -> None:
    names = [f"adapter-{i:02}" for i in range(options.adapters)]
    if options.models:
        names = options.models.split(",")
    scripted = Scripted(names, options.interval, options.first, options.at_once)
    runner = web.AppRunner(scripted.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    # It ends with who started it, however that ends.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.wait_for(runner.cleanup(), 5)


@contextmanager
def scripted(*arguments: str) -> Iterator[str]:
    """The URL of one in a process of its own, as long as it is wanted."""
    child = subprocess.Popen(
        [sys.executable, "-m", "loadtests.scripted", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--models", help="their names, a,b,…")
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--first", type=float, default=0.0)
    parser.add_argument("--at-once", type=int)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
