"""Changes of the registry beside a running server: seen within a second, never half."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import openai
import pytest

from adapters.errors import ArtifactError
from adapters.frozen import Lane
from demo.expectations import EXPECTATIONS, MAX_TOKENS
from demo.prepare import ARTIFACTS
from loadtests.live import LiveServer, run_cli
from tests.adapters.intake.bad_artifacts import BAD
from tests.adapters.intake.bad_converted import BAD_CONVERTED
from tests.adapters.intake.bad_formats import BAD_FORMATS
from tests.adapters.intake.bad_merges import BAD_MERGES
from tests.adapters.intake.bad_other_formats import BAD_OTHER
from tests.adapters.intake.bad_tuners import BAD_TUNERS
from tests.adapters.intake.merge_only import MERGE_ONLY

PROMPT = "What is the capital of France?"
SEEN_WITHIN = 1.0


def register(live: LiveServer, source: Path, name: str, *more: str) -> str:
    done = run_cli(
        live.store, "--json", "register", str(source), "--name", name, "--base", "smollm2", *more
    )
    assert done.returncode == 0, done.stderr
    version: str = json.loads(done.stdout)["version"]
    return version


def test_an_adapter_registered_beside_the_server_answers_within_a_second(live: LiveServer) -> None:
    register(live, ARTIFACTS / "pirate", "late")
    registered = time.monotonic()
    while True:
        try:
            answer = live.client().chat.completions.create(
                model="late",
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=MAX_TOKENS,
                temperature=0,
            )
            break
        except openai.NotFoundError:
            assert time.monotonic() - registered < SEEN_WITHIN
            time.sleep(0.02)
    assert EXPECTATIONS["pirate"](answer.choices[0].message.content or "")


async def test_a_tag_moves_under_load_and_back(live: LiveServer) -> None:
    """Nobody fails; each is answered by exactly one version; then everybody gets the new one."""
    speaks = {"v1": EXPECTATIONS["pirate"], "v2": EXPECTATIONS["json"]}
    register(live, ARTIFACTS / "pirate", "moving", "--tag", "prod")
    register(live, ARTIFACTS / "json", "moving")
    seen: list[tuple[float, float, str]] = []
    stopping = asyncio.Event()

    async def load(client: openai.AsyncOpenAI) -> None:
        while not stopping.is_set():
            asked = time.monotonic()
            raw = await client.chat.completions.with_raw_response.create(
                model="moving:prod",
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=MAX_TOKENS,
                temperature=0,
            )
            version = raw.headers["x-adapterctl-version"].partition(":")[2]
            answer = raw.parse()
            assert answer.model == "moving:prod"
            text = answer.choices[0].message.content or ""
            assert speaks[version](text), f"{version} said {text!r}"
            seen.append((asked, time.monotonic(), version))

    async def command(*arguments: str) -> float:
        done = await asyncio.to_thread(run_cli, live.store, *arguments)
        assert done.returncode == 0, done.stderr
        return time.monotonic()

    async with live.async_client() as client, asyncio.timeout(240):
        workers = [asyncio.create_task(load(client)) for _ in range(6)]
        await asyncio.sleep(3)
        expected = []
        for arguments, version in [
            (("tag", "moving:prod", "v2"), "v2"),
            (("rollback", "moving:prod"), "v1"),
            (("tag", "moving:prod", "v2"), "v2"),
        ]:
            moved = await command(*arguments)
            await asyncio.sleep(4)
            expected.append((moved + SEEN_WITHIN, time.monotonic(), version))
        stopping.set()
        await asyncio.gather(*workers)
    assert len(seen) > 12
    assert {version for _, _, version in seen} == {"v1", "v2"}
    for begin, end, version in expected:
        later = [v for asked, _, v in seen if begin <= asked <= end]
        assert set(later) <= {version}


def test_a_blob_in_use_is_kept_although_its_version_is_removed(live: LiveServer) -> None:
    """The engine may read it again: rm is refused, and forced it still leaves the files."""
    register(live, ARTIFACTS / "support", "doomed")
    client = live.client()
    time.sleep(SEEN_WITHIN)
    client.chat.completions.create(
        model="doomed", messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    refused = run_cli(live.store, "rm", "doomed")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    removed = run_cli(live.store, "rm", "doomed", "--force")
    assert removed.returncode == 0, removed.stderr
    assert run_cli(live.store, "gc").returncode == 0
    time.sleep(SEEN_WITHIN)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(
            model="doomed", messages=[{"role": "user", "content": "x"}], max_tokens=1
        )
    assert run_cli(live.store, "verify").returncode == 0


def test_no_bad_artifact_gets_in_and_the_server_answers_right_after_all(
    live: LiveServer, tmp_path: Path
) -> None:
    from adapters.catalog import Catalog

    with Catalog.open(live.store) as catalog:
        descriptor = catalog.base_descriptor("smollm2")
        before = [adapter.name for adapter in catalog.adapters()]
        every = BAD | BAD_TUNERS | BAD_CONVERTED | BAD_FORMATS | BAD_OTHER | BAD_MERGES
        for name, bad in every.items():
            if name.endswith("-without-the-base"):
                continue  # here the base is at hand
            folder = tmp_path / name
            folder.mkdir()
            bad(folder, descriptor)
            # Those of other formats have a tiny base's sizes: bad here for more than one reason.
            refusal = ArtifactError if name in BAD_FORMATS | BAD_OTHER else bad.error
            with pytest.raises(refusal):
                catalog.register(str(folder / bad.inside), name="bad", base="smollm2")
            shutil.rmtree(folder)
        assert [adapter.name for adapter in catalog.adapters()] == before
    for name, expected in EXPECTATIONS.items():
        answer = live.client().chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=MAX_TOKENS,
            temperature=0,
        )
        assert expected(answer.choices[0].message.content or "")


def test_what_no_plain_lora_expresses_is_registered_and_says_why_nothing_answers(
    live: LiveServer, tmp_path: Path
) -> None:
    from adapters.catalog import Catalog

    name = "merge-only"
    with Catalog.open(live.store) as catalog:
        descriptor = catalog.base_descriptor("smollm2")
        for kind, artifact in MERGE_ONLY.items():
            folder = tmp_path / kind
            folder.mkdir()
            artifact(folder, descriptor)
            found = catalog.register(str(folder), name=name, base="smollm2", tag=kind)
            assert found.lane is Lane.MERGED
            shutil.rmtree(folder)
    time.sleep(SEEN_WITHIN)
    client = live.client()
    listed = {model.id for model in client.models.list()}
    assert not {one for one in listed if one.startswith(name)}
    for kind, artifact in MERGE_ONLY.items():
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(
                model=f"{name}:{kind}", messages=[{"role": "user", "content": "x"}], max_tokens=1
            )
        assert refused.value.code == "not_deployed"
        for part in artifact.says:
            assert part in refused.value.message
    shown = json.loads(run_cli(live.store, "--json", "show", f"{name}:dora").stdout)
    assert (shown["lane"], shown["reason"]) == ("merged", shown["manifest"]["reasons"][0])
    assert run_cli(live.store, "rm", name, "--force").returncode == 0


def test_the_cli_over_the_admin_api_sees_the_same_store(live: LiveServer) -> None:
    local = run_cli(live.store, "--json", "ls")
    remote = run_cli(live.store, "engines", "--json")
    engines = json.loads(remote.stdout)
    assert engines[0]["state"] == "ready"
    assert {"pirate", "json", "support"} <= {one["name"] for one in json.loads(local.stdout)}
