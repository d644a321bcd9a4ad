"""Twenty switches of every kind under load: nobody fails, and nobody gets two versions in one.

Eight clients ask four references without a pause, half of them streaming, while tags, lanes and
routes move and engines are killed. Every answer names its version; afterwards each different answer
is judged, token by token, by that version's own model as PEFT computes it in fp32. A token of
another version in it is whole nats away, as the test shows of every other version's answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.prepare import ARTIFACTS
from loadtests.live import LiveServer, kill_hard, run_cli
from tests.engine.test_methods import faults

# In nats, between fp32 and what bf16 says in a batch of any shape, merged or not.
NOISE = 0.6
TOKENS = 16
QUESTIONS = ("What is the capital of France?", "How do I boil an egg?", "Tell me about the sea.")
# reference -> what its versions are.
TEAMS = {
    "moving": ("pirate", "json"),
    "lanes": ("support",),
    "split": ("pirate", "support"),
    "leaving": ("json", "pirate"),
}
CLIENTS_EACH = 2
# Seen by the server's snapshot, and then some.
SEEN = 1.0
# A killed process takes requests until the kernel has freed its memory and closes its sockets.
DYING = 0.5


@dataclass(frozen=True)
class Answer:
    reference: str
    version: str
    lane: str
    question: int
    said: tuple[int, ...]
    asked: float
    ended: float


@dataclass
class Books:
    answers: list[Answer] = field(default_factory=list)
    failures: list[tuple[str, float, float, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def base_path(live: LiveServer) -> Path:
    found = run_cli(live.store, "--json", "base", "show", "smollm2")
    return Path(json.loads(found.stdout)["path"])


def prepare(live: LiveServer) -> None:
    for reference, styles in TEAMS.items():
        for number, style in enumerate(styles, start=1):
            more = ("--tag", "prod") if number == 1 else ()
            command(live, "register", str(ARTIFACTS / style), "--name", reference, *more)


def command(live: LiveServer, *arguments: str) -> Any:
    if arguments[0] == "register":
        arguments = (*arguments, "--base", "smollm2")
    done = run_cli(live.store, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Load:
    """The clients, from start to stop, and what became of each request."""

    def __init__(self, client: openai.AsyncOpenAI, prompts: list[list[int]]) -> None:
        self.books = Books()
        self._client = client
        self._prompts = prompts
        self._stopping = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._run(f"{reference}:prod", number))
            for reference in TEAMS
            for number in range(CLIENTS_EACH)
        ]

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def until(self, found: Callable[[Answer], bool], within: float = 120) -> float:
        """Wait for an answer that was asked for from now on and that `found` takes."""
        since = time.monotonic()
        async with asyncio.timeout(within):
            while not any(a.asked >= since and found(a) for a in reversed(self.books.answers)):
                assert not any(task.done() for task in self._tasks), "a client has ended"
                await asyncio.sleep(0.05)
        return time.monotonic()

    async def _run(self, reference: str, number: int) -> None:
        turn = number
        while not self._stopping.is_set():
            turn += 1
            asked = time.monotonic()
            try:
                await self._ask(reference, turn % len(self._prompts), number % 2 == 0, asked)
            except openai.APIError as error:
                self.books.failures.append((reference, asked, time.monotonic(), repr(error)))

    async def _ask(self, reference: str, question: int, stream: bool, asked: float) -> None:
        raw = await self._client.completions.with_raw_response.create(
            model=reference,
            prompt=self._prompts[question],
            max_tokens=TOKENS,
            temperature=0,
            stream=stream,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        said: list[int] = []
        if stream:
            async for chunk in raw.parse():  # type: ignore[union-attr]
                assert chunk.model == reference
                for choice in chunk.choices:
                    said += choice.model_dump().get("token_ids") or []
        else:
            whole: Any = raw.parse()
            said = whole.choices[0].model_dump()["token_ids"]
        assert len(said) == TOKENS, f"{reference} ended after {len(said)} tokens"
        version, lane = raw.headers["x-adapterctl-version"], raw.headers["x-adapterctl-lane"]
        ended = time.monotonic()
        self.books.answers.append(
            Answer(reference, version, lane, question, tuple(said), asked, ended)
        )


Do = Callable[..., Awaitable[Any]]


async def switch_tags(do: Do, load: Load) -> int:
    for version in ("v2", "v1", "v2", "v1", "v2"):
        await do("tag", "moving:prod", version)
        await load.until(lambda a, v=version: a.version == f"moving:{v}")  # type: ignore[misc]
    return 5


async def switch_lanes(do: Do, load: Load) -> int:
    for lane in ("merged", "hot"):
        await do("deploy", "lanes:prod", "--lane", lane)
        await load.until(lambda a, w=lane: a.version == "lanes:v1" and a.lane == w)  # type: ignore[misc]
    return 2


async def switch_routes(do: Do, load: Load) -> int:
    await do("route", "split:prod", "v2=50%", "--no-rollback")
    await load.until(lambda a: a.version == "split:v2")
    await load.until(lambda a: a.version == "split:v1")
    await do("route", "split:prod", "v2=100%", "--no-rollback")
    cut = time.monotonic() + SEEN
    await load.until(lambda a: a.asked > cut and a.version == "split:v2")
    await do("route", "split:prod", "--clear")
    await load.until(lambda a: a.version == "split:v1")
    return 3


async def switch_out_of_service(do: Do, load: Load) -> int:
    """A version leaves under those who are still being answered by it, and comes back."""
    for there, gone in (("v2", "v1"), ("v1", "v2")):
        await do("tag", "leaving:prod", there)
        await load.until(lambda a, v=there: a.version == f"leaving:{v}")  # type: ignore[misc]
        await do("undeploy", f"leaving:{gone}")
        await load.until(lambda a: a.reference == "leaving:prod")
        await do("deploy", f"leaving:{gone}")
    return 6


async def kill_engine(live: LiveServer, load: Load, kind: str) -> float:
    pid = next(int(e["pid"]) for e in engines(live) if (e.get("lane") or "hot") == kind)
    killed = time.monotonic()
    kill_hard(pid)
    return killed


def engines(live: LiveServer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = command(live, "engines")
    return found


async def test_twenty_switches_under_load(live: LiveServer, base_path: Path) -> None:
    prepare(live)
    tokenizer = AutoTokenizer.from_pretrained(base_path)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]

    async def do(*arguments: str) -> Any:
        return await asyncio.to_thread(command, live, *arguments)

    kills: list[tuple[float, set[str]]] = []
    async with live.async_client() as client, asyncio.timeout(420):
        await asyncio.sleep(SEEN)
        load = Load(client, prompts)
        await load.until(lambda a: True)
        switches = await switch_tags(do, load)
        switches += await switch_lanes(do, load)
        switches += await switch_routes(do, load)
        switches += await switch_out_of_service(do, load)
        await do("deploy", "lanes:prod", "--lane", "merged")
        await load.until(lambda a: a.lane == "merged")
        kills.append((await kill_engine(live, load, "merged"), {"lanes:prod"}))
        await load.until(lambda a: a.version == "lanes:v1" and a.lane == "hot")
        await do("deploy", "lanes:prod", "--lane", "hot")
        kills.append((await kill_engine(live, load, "hot"), {f"{name}:prod" for name in TEAMS}))
        for name in TEAMS:
            await load.until(lambda a, n=name: a.reference == f"{n}:prod")  # type: ignore[misc]
        await do("undeploy", "split:v2")
        await load.until(lambda a: a.reference == "split:prod")
        switches += 3 + len(kills)
        await load.stop()
    assert switches >= 20
    books = load.books
    assert unexplained(books, kills) == []
    judge(books, base_path, prompts)


def unexplained(books: Books, kills: list[tuple[float, set[str]]]) -> list[Any]:
    """Failures of requests that were not in flight on an engine that was killed."""
    return [
        failure
        for failure in books.failures
        if not any(
            failure[0] in hurt and failure[1] <= killed + DYING and killed <= failure[2]
            for killed, hurt in kills
        )
    ]


def judge(books: Books, base_path: Path, prompts: list[list[int]]) -> None:
    """Each answer is its version's own from the first token to the last, and no other's."""
    styles = {f"{name}:v{n}": s for name, all_ in TEAMS.items() for n, s in enumerate(all_, 1)}
    said = {(styles[a.version], a.question, a.said) for a in books.answers}
    assert {style for style, _, _ in said} == {"pirate", "json", "support"}
    base = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32).eval()
    for style in sorted({style for style, _, _ in said}):
        model = PeftModel.from_pretrained(base, ARTIFACTS / style)
        for other, question, tokens in said:
            worst = faults(model, prompts[question], list(tokens)).max()
            if other == style:
                assert worst <= NOISE, f"{style} said {tokens}: {worst:.2f} nats"
            else:
                assert worst > 2 * NOISE, f"{other}'s answer would pass for {style}'s: {tokens}"
        base = model.unload()
