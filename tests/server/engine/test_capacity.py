"""Sizing an engine by what the registry holds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.frozen import Lane
from adapters.models import AdapterRecord, VersionRecord
from server.engine import capacity
from server.engine.capacity import (
    ENGINE_RANKS,
    FEWEST_SLOTS,
    HEADROOM,
    MEMORY_SHARE,
    MOST_SLOTS,
    engine_rank,
    hot_versions,
    plan_capacity,
    resident_bytes,
)
from server.engine.cgroups import Machine
from server.settings import ServeSettings

BASE = "sha256:" + "b" * 64


def version(
    number: int, *, rank: int = 8, base: str = BASE, size: int = 1_000_000
) -> VersionRecord:
    return VersionRecord(
        adapter="a",
        number=number,
        digest=f"sha256:{number:064x}",
        base="b",
        base_digest=base,
        format="peft",
        method="lora",
        lane=Lane.HOT,
        rank=rank,
        size_bytes=size,
        registered_at=datetime.now(UTC),
    )


def settings(**values: int) -> ServeSettings:
    return ServeSettings(store=Path("x"), base="b", **values)


@given(rank=st.integers(1, 512))
def test_the_engines_rank_is_the_next_it_takes(rank: int) -> None:
    chosen = engine_rank(rank)
    assert chosen in ENGINE_RANKS
    assert chosen >= rank
    assert not any(rank <= other < chosen for other in ENGINE_RANKS)


def test_everything_registered_stays_resident_with_room_for_more() -> None:
    planned = plan_capacity(settings(), [version(n) for n in range(1, 101)])
    assert planned.slots == MOST_SLOTS
    assert planned.cpu_adapters > 100
    assert planned.max_rank == 16


def test_memory_bounds_what_stays_resident_but_never_below_the_slots() -> None:
    planned = plan_capacity(settings(slots=5), [version(1, size=10**15)])
    assert planned.cpu_adapters == 5


def machine(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: Machine(10**15, available))


def test_a_large_adapter_does_not_crowd_out_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, int(1_000_000_000 / MEMORY_SHARE))
    versions = [version(1, size=500_000_000), *(version(n) for n in range(2, 402))]
    assert plan_capacity(settings(), versions).cpu_adapters == 401


@given(sizes=st.lists(st.integers(1, 10**9), max_size=30), free=st.integers(0, 10**10))
def test_what_stays_resident_fits_the_memory_for_it(sizes: list[int], free: int) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine(monkeypatch, free)
        versions = [version(n, size=size) for n, size in enumerate(sizes, start=1)]
        planned = plan_capacity(settings(slots=1), versions)
    if planned.cpu_adapters > 1 and sizes:
        assert resident_bytes(sizes, planned.cpu_adapters) <= free * MEMORY_SHARE
    assert 1 <= planned.cpu_adapters <= max(1, len(sizes)) + HEADROOM


@pytest.mark.parametrize(
    ("slots", "free", "sequences", "expected"),
    [
        # 2 bytes x rank 16 x 10,000 features: 320 kB a slot.
        (None, 10**12, 128, MOST_SLOTS),
        (None, 20 * 320_000 * 20, 128, 20),
        (None, 0, 128, FEWEST_SLOTS),
        (None, 10**12, 10, 10),
        (3, 10**12, 128, 3),
        (200, 0, 10, 200),
    ],
)
def test_slots_are_as_many_as_a_batch_uses_and_memory_allows_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch, slots: int | None, free: int, sequences: int, expected: int
) -> None:
    machine(monkeypatch, free)
    given_slots = {} if slots is None else {"slots": slots}
    planned = plan_capacity(settings(**given_slots), [], widths=10_000, sequences=sequences)
    assert planned.slots == expected
    assert planned.cpu_adapters >= expected


def test_a_gpus_kernels_take_time_for_each_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "on_cpu", lambda: False)
    assert plan_capacity(settings(), []).slots == FEWEST_SLOTS


def test_the_highest_registered_rank_decides_unless_it_is_set() -> None:
    versions = [version(1, rank=8), version(2, rank=40)]
    assert plan_capacity(settings(), versions).max_rank == 64
    assert plan_capacity(settings(max_rank=8), versions).max_rank == 8
    assert plan_capacity(settings(), []).max_rank == 16


def test_what_no_engine_swaps_in_does_not_count() -> None:
    merged = version(2, rank=400).model_copy(update={"lane": Lane.MERGED, "rank": None})
    adapter = AdapterRecord(
        name="a", default_tag="latest", versions={1: version(1), 2: merged}, tags={}
    )
    assert [one.number for one in hot_versions([adapter], BASE)] == [1]
    assert plan_capacity(settings(), [version(1), merged]).max_rank == 16


def test_versions_of_another_base_do_not_count() -> None:
    adapter = AdapterRecord(
        name="a",
        default_tag="latest",
        versions={1: version(1), 2: version(2, base="sha256:" + "c" * 64)},
        tags={},
    )
    assert [one.number for one in hot_versions([adapter], BASE)] == [1]
