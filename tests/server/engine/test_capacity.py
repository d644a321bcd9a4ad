"""Sizing an engine by what the registry holds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from adapters.frozen import Lane
from adapters.models import AdapterRecord, VersionRecord
from server.engine.capacity import ENGINE_RANKS, engine_rank, hot_versions, plan_capacity
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
    assert planned.slots == 8
    assert planned.cpu_adapters > 100
    assert planned.max_rank == 16


def test_memory_bounds_what_stays_resident_but_never_below_the_slots() -> None:
    planned = plan_capacity(settings(), [version(1, size=10**15)])
    assert planned.cpu_adapters == 8


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
