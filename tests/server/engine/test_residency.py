"""Reading an engine's residency over HTTP: with our routes, without them, restarted, gone."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import (
    AdapterNotLoadable,
    Conflict,
    EngineError,
    EngineUnavailable,
    RouteNotServed,
)
from server.engine.residency import (
    Residency,
    ResidencyCache,
    Resident,
    check_pins,
    is_due,
    waiting_requests,
)
from server.engine.transport import EngineAddress, EngineTransport
from tests.server.engine.telling import METRICS, ONE, TOLD, TWO, Answers, engine


@pytest.fixture
async def answers(tmp_path: Path) -> AsyncIterator[Answers]:
    found = Answers()
    async with engine(found, tmp_path / "e.sock"):
        yield found


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[EngineTransport]:
    found = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
    yield found
    await found.close()


async def test_names_in_the_engine_become_digests(
    answers: Answers, transport: EngineTransport
) -> None:
    resident = await Residency().read(transport)
    assert resident == Resident(
        slots=(f"sha256:{ONE}", None, "somebody-elses"),
        pinned=frozenset({f"sha256:{ONE}"}),
        cpu=(f"sha256:{TWO}", f"sha256:{ONE}", "somebody-elses"),
        cpu_total=9,
        loads=4,
        load_seconds=0.5,
        evictions=1,
        swaps=6,
        swap_seconds=0.25,
        prefetched=3,
        overlapped=2,
        loaded={f"sha256:{ONE}": 3, "somebody-elses": 1},
    )
    places = [resident.place(f"sha256:{digest}") for digest in (ONE, TWO, "3" * 64)]
    assert places == ["slot", "cpu", "store"]


async def test_a_prefetch_asks_by_the_digest(answers: Answers, transport: EngineTransport) -> None:
    answers.document = {"seconds": 0.2}
    assert await Residency().prefetch(transport, f"sha256:{ONE}") == 0.2
    assert answers.asked == [("/adapterctl/prefetch", {"name": f"sha256-{ONE}"})]


async def test_pins_that_the_engine_refuses_are_named(
    answers: Answers, transport: EngineTransport
) -> None:
    answers.document = {"pinned": [f"sha256-{ONE}"], "refused": {f"sha256-{TWO}": "too many"}}
    wanted = [f"sha256:{ONE}", f"sha256:{TWO}", f"sha256:{ONE}"]
    pinned = await Residency().apply_pins(transport, wanted)
    assert pinned.pinned == {f"sha256:{ONE}"}
    assert pinned.refused == {f"sha256:{TWO}": "too many"}
    assert answers.asked[0][1] == {"names": [f"sha256-{ONE}", f"sha256-{TWO}"]}


async def test_what_the_engine_cannot_load_is_not_loadable(
    answers: Answers, transport: EngineTransport
) -> None:
    answers.status, answers.document = 409, {"error": "it has no weights"}
    with pytest.raises(AdapterNotLoadable, match="it has no weights"):
        await Residency().prefetch(transport, f"sha256:{ONE}")


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_engine_without_the_routes_is_unknown_not_empty(
    answers: Answers, transport: EngineTransport, status: int
) -> None:
    answers.status, answers.document = status, {"error": "no"}
    assert await Residency().read(transport) is None
    with pytest.raises(RouteNotServed, match="was not started by adapterctl"):
        await Residency().prefetch(transport, f"sha256:{ONE}")
    with pytest.raises(RouteNotServed):
        await Residency().apply_pins(transport, [])


@pytest.mark.parametrize(
    ("status", "document"),
    [(500, TOLD), (200, []), (200, "text"), (200, {"slots": 3}), (200, {**TOLD, "loads": "x"})],
)
async def test_nonsense_is_the_engines_error(
    answers: Answers, transport: EngineTransport, status: int, document: object
) -> None:
    answers.status, answers.document = status, document
    with pytest.raises(EngineError):
        await Residency().read(transport)


async def test_an_engine_that_is_gone_is_unavailable(transport: EngineTransport) -> None:
    with pytest.raises(EngineUnavailable):
        await Residency().read(transport)


async def test_a_closed_connection_is_the_engines_error(
    answers: Answers, transport: EngineTransport
) -> None:
    await transport.close()
    with pytest.raises(EngineError):
        await Residency().read(transport)


@pytest.mark.parametrize(("count", "slots"), [(1, 2), (7, 8), (0, 1)])
def test_all_slots_but_one_can_be_pinned(count: int, slots: int) -> None:
    check_pins(count, slots)


@given(st.integers(1, 64), st.integers(0, 64))
def test_more_pins_are_refused_with_figures(slots: int, more: int) -> None:
    with pytest.raises(Conflict, match=f"{slots + more} adapters .* {slots} slots"):
        check_pins(slots + more, slots)


def test_only_the_requests_that_wait_are_counted() -> None:
    assert waiting_requests(METRICS) == 3
    assert waiting_requests("") is None
    two = 'vllm:num_requests_waiting{engine="0"} 1.0\nvllm:num_requests_waiting{engine="1"} 2.0\n'
    assert waiting_requests(two) == 3


@pytest.mark.parametrize(
    ("looked", "last", "due"),
    [(-math.inf, -math.inf, True), (-math.inf, 90, False), (0, 90, False), (20, 95, True)],
)
def test_an_engine_that_nobody_looks_at_is_read_now_and_then(
    looked: float, last: float, due: bool
) -> None:
    assert is_due(100, looked=looked, last=last, unwatched=30) is due


class TestCache:
    async def until_asked(self, answers: Answers) -> None:
        answers.told.clear()
        async with asyncio.timeout(5):
            await answers.told.wait()

    async def test_it_reads_by_itself_and_never_waits(
        self, answers: Answers, transport: EngineTransport
    ) -> None:
        cache = ResidencyCache(lambda: transport, interval=0.01)
        assert cache.current() is None
        assert cache.queue() is None
        cache.start()
        async with asyncio.timeout(5):
            while (resident := cache.current()) is None:
                await asyncio.sleep(0.01)
        assert resident.loads == 4
        assert cache.queue() == 3
        answers.document = {**TOLD, "loads": 5}
        async with asyncio.timeout(5):
            while (resident := cache.current()) is None or resident.loads == 4:
                await asyncio.sleep(0.01)
        await cache.close()
        await cache.close()

    async def test_a_reading_belongs_to_one_engine(
        self, answers: Answers, transport: EngineTransport, tmp_path: Path
    ) -> None:
        transports = [transport]
        cache = ResidencyCache(lambda: transports[0])
        assert await cache.fresh() == cache.current() is not None
        other = EngineTransport(EngineAddress("http://engine", tmp_path / "e.sock"), 1)
        transports[0] = other
        assert cache.current() is None
        assert await cache.fresh() is not None
        await other.close()

    async def test_an_engine_that_is_not_ready_has_none(
        self, answers: Answers, transport: EngineTransport
    ) -> None:
        ready = True

        def current() -> EngineTransport:
            if not ready:
                raise EngineUnavailable("starting", retry_after=1)
            return transport

        cache = ResidencyCache(current, interval=0.01)
        await cache.fresh()
        ready = False
        assert cache.current() is None
        with pytest.raises(EngineUnavailable):
            await cache.fresh()
        # Nor does the reading end over it.
        cache.start()
        await asyncio.sleep(0.03)
        ready = True
        await self.until_asked(answers)
        await cache.close()

    async def test_an_external_engine_has_none(
        self, transport: EngineTransport, tmp_path: Path
    ) -> None:
        async with engine(Answers(), tmp_path / "e.sock", ours=False):
            cache = ResidencyCache(lambda: transport)
            assert await cache.fresh() is None
            assert cache.current() is None
            assert cache.queue() is None
