"""What the real engine holds, through the admin API: read, prefetched, pinned under pressure."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adapters.catalog import Catalog
from demo.expectations import EXPECTATIONS
from loadtests.live import LiveServer
from tests.engine.conftest import STRONG
from tests.engine.strong import write_strong_adapter

NAMES = tuple(f"resident-{number}" for number in range(6))
# With all of the session's others there are more of them than the engine has slots.
OTHERS = (*EXPECTATIONS, *STRONG, *NAMES[1:])


@pytest.fixture(scope="module")
def live(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The session's server with six adapters more, which are gone again afterwards."""
    sources = tmp_path_factory.mktemp("resident")
    with Catalog.open(live.store) as catalog:
        descriptor = catalog.base_descriptor("smollm2")
        for number, name in enumerate(NAMES):
            write_strong_adapter(sources / name, descriptor, seed=100 + number)
            catalog.register(str(sources / name), name=name, base="smollm2")
    yield live
    with Catalog.open(live.store) as catalog:
        for name in NAMES:
            catalog.rm(name, force=True)


def admin(live: LiveServer, method: str, path: str) -> Any:
    request = urllib.request.Request(f"{live.url}/admin/v1/{path}", method=method)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def residency(live: LiveServer) -> Any:
    return admin(live, "GET", "residency")


def slots(document: Any) -> list[str | None]:
    return [held and held["reference"] for held in document["slots"]]


def ask(live: LiveServer, model: str) -> None:
    live.client().completions.create(model=model, prompt="Hello", max_tokens=2, temperature=0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def resident_references(document: Any) -> set[str | None]:
    return {held["reference"] for held in document["cpu"]}


def counts(document: Any) -> tuple[int, int]:
    return document["loads"], document["swaps"]


def test_the_first_request_after_a_prefetch_pays_nothing(live: LiveServer) -> None:
    before = residency(live)
    assert f"{NAMES[0]}:v1" not in {held["reference"] for held in before["cpu"]}
    found = admin(live, "POST", f"prefetch/{NAMES[0]}")
    assert found["place"] == "slot"
    fetched = residency(live)
    assert f"{NAMES[0]}:v1" in slots(fetched)
    assert counts(fetched) == (before["loads"] + 1, before["swaps"] + 1)
    assert fetched["load_seconds"] > before["load_seconds"]
    ask(live, NAMES[0])
    assert counts(residency(live)) == counts(fetched)
    # Asked without, a version is read in its first request.
    ask(live, NAMES[1])
    used = residency(live)
    assert counts(used) == (fetched["loads"] + 1, fetched["swaps"] + 1)
    assert f"{NAMES[1]}:v1" in slots(used)


async def test_no_stream_waits_for_a_cold_adapter(live: LiveServer) -> None:
    """By counts: every read was beside the engine's steps, and over before one needed it."""
    counted = ("loads", "prefetched", "overlapped")
    before = await asyncio.to_thread(residency, live)
    cold = [name for name in NAMES[3:] if f"{name}:v1" not in resident_references(before)]
    assert cold
    async with live.async_client() as client:
        stream = await client.completions.create(
            model="strong-a", prompt="Hello", max_tokens=400, temperature=0, stream=True
        )
        await anext(stream)
        for name in cold:
            await client.completions.create(model=name, prompt="Hello", max_tokens=1)
        # It went on all the while.
        assert len([chunk async for chunk in stream]) > len(cold)
    after = await asyncio.to_thread(residency, live)
    loads, prefetched, overlapped = (after[name] - before[name] for name in counted)
    # The stream's own adapter may have been cold, too.
    assert len(cold) <= loads <= len(cold) + 1
    assert loads == prefetched == overlapped


async def test_a_pin_keeps_its_slot_from_more_adapters_than_there_are_slots(
    live: LiveServer,
) -> None:
    pinned = f"{NAMES[0]}:v1"

    def held() -> bool:
        return any(one and one["pinned"] for one in residency(live)["slots"])

    await asyncio.to_thread(admin, live, "PUT", f"pins/{pinned}")
    await asyncio.to_thread(until, held)
    assert len(OTHERS) > len(residency(live)["slots"])
    async with live.async_client() as client:
        asked = [
            asyncio.create_task(
                client.completions.create(model=name, prompt="Hello", max_tokens=6, temperature=0)
            )
            for name in OTHERS
        ]
        readings = []
        while not all(task.done() for task in asked):
            readings.append(await asyncio.to_thread(residency, live))
        answers = await asyncio.gather(*asked)
    assert all(answer.choices[0].text is not None for answer in answers)
    last = residency(live)
    for document in (*readings, last):
        assert pinned in slots(document)
        assert [one["reference"] for one in document["slots"] if one and one["pinned"]] == [pinned]
    assert last["swaps"] - readings[0]["swaps"] > 0
    await asyncio.to_thread(admin, live, "DELETE", f"pins/{pinned}")
    await asyncio.to_thread(until, lambda: not held())


def test_top_and_metrics_show_where_a_version_is(live: LiveServer) -> None:
    ask(live, NAMES[2])
    residency(live)
    rows = {(row["adapter"], row["number"]): row for row in admin(live, "GET", "top")["rows"]}
    assert rows[NAMES[2], 1]["place"] == "slot"
    assert rows[NAMES[2], 1]["requests"] >= 1
    with urllib.request.urlopen(f"{live.url}/metrics", timeout=10) as response:
        text = response.read().decode()
    assert f'adapterctl_adapter_resident{{adapter="{NAMES[2]}",where="slot"}} 1.0' in text
