"""`python -m loadtests.dashboards`: everything happens that a dashboard can show, and all is shown.

A real server with few slots, real keys and quotas, users, a canary whose files are damaged, another
that answers, a shadow, a merge that is measured, a merged model's engine, an engine that is killed;
a real Prometheus looks on. At the end every query of every panel must have data; `--pictures DIR`
draws the dashboards as they were then. Takes some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from adapters.catalog import Catalog
from adapters.store.layout import StoreLayout
from demo.prepare import prepare
from demo.traffic import run as users
from deploy.grafana.asking import Shown, everything, shown
from deploy.grafana.build import BOARDS
from deploy.prometheus.promql import Prometheus, running
from loadtests.adapters import write_adapter
from loadtests.live import LiveServer, kill_hard, run_cli
from loadtests.reporting.boards import drawn

DEMO: Final = Path(__file__).parents[1] / "demo" / "artifacts"
WATCHED: Final = "watched"
# Seconds for a step of the story; it goes on without what takes longer, and says so.
PATIENCE: Final = 900.0
# SmolLM2's <|im_end|>: an answer that may hold nothing else ends before it has begun.
_END: Final = [2]


@dataclass(frozen=True, slots=True)
class Keys:
    """Secrets: who looks on, who asks, and one with a small quota."""

    admin: str
    acme: str
    beta: str


def make_store(root: Path) -> Keys:
    """The demo's adapters, and one of four versions, of which the files of v4 get damaged; keys."""
    store = root / "store"
    prepare(store)
    with Catalog.open(store) as catalog:
        for source in ("pirate", "json", "support"):
            catalog.register(str(DEMO / source), name=WATCHED, base="smollm2")
        write_adapter(root / "spare")
        digest = catalog.register(str(root / "spare"), name=WATCHED, base="smollm2").digest
        catalog.tag(f"{WATCHED}:latest", "v1")
    weights = StoreLayout(store).blob(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    # The length of the header: it cannot be read any more.
    data[:8] = b"\xff" * 8
    weights.write_bytes(data)
    return Keys(
        admin=_key(store, "--scope", "admin", "--scope", "infer"),
        acme=_key(store, "--tenant", "acme"),
        beta=_key(store, "--tenant", "beta", "--requests-per-minute", "5"),
    )


def _key(store: Path, *options: str) -> str:
    return str(cli(store, "keys", "create", *options)["secret"])


def cli(store: Path, *arguments: str) -> Any:
    """What `adapterctl --json …` says; ends the program where it fails."""
    done = run_cli(store, *arguments, "--json")
    if done.returncode != 0:
        raise SystemExit(f"adapterctl {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def end_jobs(store: Path) -> None:
    """None may go on in a store that is removed."""
    while living := [job for job in cli(store, "jobs") if job["state"] in ("queued", "running")]:
        for job in living:
            run_cli(store, "jobs", "cancel", job["id"])
        time.sleep(1)


class Story:
    """What happens while users ask."""

    def __init__(
        self, server: LiveServer, keys: Keys, say: Callable[[str], None], *, patience: float
    ):
        self._server = server
        self._keys = keys
        self._say = say
        self._patience = patience

    async def tell(self) -> None:
        """All of it, one thing after the other, with users all the time."""
        ended = asyncio.Event()
        others = [
            asyncio.create_task(self._users(self._keys.acme, 2)),
            asyncio.create_task(self._users(self._keys.beta, 1)),
            asyncio.create_task(self._watched_users(ended)),
        ]
        try:
            await self._happen()
        finally:
            ended.set()
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _happen(self) -> None:
        await self._cli("merge", "support", "--report", "--eval-tokens", "64", "--detach")
        self._say("a job merges and measures")
        await self._cli("route", WATCHED, "v4=50%")
        await self._until("a canary whose files are damaged is taken back", self._rolled_back)
        await self._cli("route", WATCHED, "v2=40%", "--shadow", "v3=60%")
        if await self._until("the merge has ended", self._merged):
            await self._cli("deploy", "support", "--lane", "merged", "--model", "support-merged")
            self._say("the merged model is served by an engine of its own")
        await asyncio.sleep(10)
        kill_hard(int(self._server.engine()["pid"]))
        self._say("the base's engine is killed")
        await asyncio.sleep(5)
        await self._until("it is there again", self._ready)
        await asyncio.sleep(15)

    async def _rolled_back(self) -> bool:
        history = await self._cli("history", WATCHED)
        return "rollback" in json.dumps(history)

    async def _merged(self) -> bool:
        states = {job["state"] for job in await self._cli("jobs")}
        if states & {"failed", "rejected"}:
            raise SystemExit(f"the merge ended otherwise: {states}")
        return states == {"succeeded"}

    async def _ready(self) -> bool:
        return await asyncio.to_thread(self._server.status, "/readyz") == 200

    async def _until(self, what: str, there: Callable[[], Any]) -> bool:
        began = time.monotonic()
        while not await there():
            if time.monotonic() - began > self._patience:
                self._say(f"not within {self._patience:g} s: {what}")
                return False
            await asyncio.sleep(1)
        self._say(f"{what} ({time.monotonic() - began:.0f} s)")
        return True

    async def _cli(self, *arguments: str) -> Any:
        return await asyncio.to_thread(cli, self._server.store, *arguments)

    async def _users(self, key: str, count: int) -> None:
        await users(self._server.url, key=key, users=count, pause=0.5, seconds=None, seed=count)

    async def _watched_users(self, ended: asyncio.Event) -> None:
        async def one() -> None:
            while not ended.is_set():
                for _ in range(4):
                    await self._ask(WATCHED)
                await self._ask(WATCHED, allowed_token_ids=_END)

        await asyncio.gather(one(), one())

    async def _ask(self, model: str, **more: object) -> None:
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": 8,
            "temperature": 0,
            "stream": True,
            **more,
        }
        headers = {"Authorization": f"Bearer {self._keys.acme}"}
        async with aiohttp.ClientSession(self._server.url, headers=headers) as session:
            try:
                async with session.post("/v1/chat/completions", json=body) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                await asyncio.sleep(1)


def looked_at(prometheus: Prometheus, seconds: float) -> list[Shown]:
    """Every query of every dashboard, over the whole story."""
    values = everything(WATCHED, rate="20s", range_=f"{int(seconds)}s")
    found = list(shown(prometheus, values, seconds=seconds, step=max(1, seconds // 100)))
    # A dashboard of one adapter is one adapter's: the quality of merges is another's.
    other = everything("support", rate="20s", range_=f"{int(seconds)}s")
    more = {
        (str(one), one.query.expr): one
        for one in shown(prometheus, other, seconds=seconds, step=max(1, seconds // 100))
        if one.board is BOARDS["adapter"]
    }
    return [more.get((str(one), one.query.expr), one) if one.empty else one for one in found]


def report(found: Sequence[Shown], pictures: Path | None) -> int:
    """Says what is empty, draws what is not; the exit code."""
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name, board in BOARDS.items():
            text = drawn(board, found)
            (pictures / f"dashboard-{name}.svg").write_text(text, encoding="utf-8")
    empty = [one for one in found if one.empty]
    for one in empty:
        print(f"no data: {one}")
    panels = sum(len(board.panels) for board in BOARDS.values())
    print(f"{len(found) - len(empty)} of {len(found)} queries of {panels} panels have data")
    return 1 if empty else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 where every query has data."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.dashboards", description=__doc__)
    parser.add_argument("--pictures", type=Path, help="draw the dashboards into this directory")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds that each step may take"
    )
    given = parser.parse_args(arguments)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="adapterctl-dashboards-") as directory:
        root = Path(directory)
        keys = make_store(root)
        say("a store, its adapters and keys")
        options = ("--base", "smollm2", "--port", "0", "--slots", "2", "--merged-engines", "1")
        server = LiveServer(root / "store", *options, "--shadow-busiest", "8")
        try:
            server.start()
            say("a server")
            target = urlsplit(server.url).netloc
            with running([target], root, interval="2s", key=keys.admin) as prometheus:
                looking = time.monotonic()
                asyncio.run(Story(server, keys, say, patience=given.patience).tell())
                found = looked_at(prometheus, time.monotonic() - looking)
        finally:
            end_jobs(root / "store")
            server.stop()
    return report(found, given.pictures)


if __name__ == "__main__":
    sys.exit(main())
