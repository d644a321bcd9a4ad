"""Deciding who goes for one more engine."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.memory import GIB, MemoryPlan
from server.engine.room import Answer, Claim, Occupant, Room, fits, make_room, refusal

OCCUPANTS = st.lists(
    st.builds(
        Occupant,
        key=st.uuids().map(str),
        name=st.sampled_from(["a", "b"]),
        size=st.integers(0, 6),
        claim=st.sampled_from(Claim),
        used=st.floats(0, 9),
    ),
    max_size=6,
    unique_by=lambda one: one.key,
)
ROOMS = st.builds(
    Room,
    limit=st.integers(0, 20),
    base=st.integers(0, 6),
    places=st.integers(0, 5),
    others=st.integers(0, 3),
)


def without(occupants: list[Occupant], gone: list[Occupant]) -> list[Occupant]:
    return [one for one in occupants if one not in gone]


@given(room=ROOMS, occupants=OCCUPANTS, size=st.integers(0, 8))
def test_what_is_decided_makes_room_and_takes_nobody_in_use(
    room: Room, occupants: list[Occupant], size: int
) -> None:
    answer, gone = make_room(room, occupants, size)
    assert all(one.claim is Claim.IDLE for one in gone)
    assert bool(gone) == (answer is Answer.EVICT)
    leaving = [one for one in occupants if one.claim is Claim.LEAVING]
    assert (answer is Answer.FITS) == fits(room, occupants, size)
    if answer is Answer.EVICT:
        assert fits(room, without(occupants, leaving + gone), size)
        # Nobody goes in vain.
        for one in gone:
            rest = [other for other in gone if other is not one]
            assert not fits(room, without(occupants, leaving + rest), size)


@given(room=ROOMS, occupants=OCCUPANTS, size=st.integers(0, 8))
def test_a_refusal_means_that_nobody_who_may_go_would_make_room(
    room: Room, occupants: list[Occupant], size: int
) -> None:
    answer, _ = make_room(room, occupants, size)
    may_go = [one for one in occupants if one.claim in {Claim.IDLE, Claim.RESTING, Claim.LEAVING}]
    possible = any(
        fits(room, without(occupants, list(gone)), size)
        for count in range(len(may_go) + 1)
        for gone in combinations(may_go, count)
    )
    assert (answer is Answer.REFUSE) == (not possible)


def test_the_least_recently_used_goes_first() -> None:
    old, new = (
        Occupant(key, key, 2, Claim.IDLE, used) for key, used in (("old", 1.0), ("new", 2.0))
    )
    assert make_room(Room(5, 0, 9), [new, old], 2) == (Answer.EVICT, [old])
    # A small one that was looked at first stays, if the larger one is needed anyway.
    small = Occupant("small", "small", 1, Claim.IDLE, 0.0)
    large = Occupant("large", "large", 4, Claim.IDLE, 3.0)
    assert make_room(Room(5, 0, 9), [large, small], 4) == (Answer.EVICT, [large])


def test_who_has_just_been_used_is_waited_for_and_who_leaves_too() -> None:
    for claim in (Claim.RESTING, Claim.LEAVING):
        one = Occupant("x", "x", 4, claim, 0.0)
        assert make_room(Room(5, 0, 9), [one], 4) == (Answer.WAIT, [])


def test_a_refusal_says_what_is_needed_what_is_free_and_who_has_the_rest() -> None:
    plan = MemoryPlan(GIB // 3, GIB, 0, 3 * GIB // 2)
    held = Occupant("k", "json:v1", 3 * GIB, Claim.HELD, 0.0)
    assert refusal(Room(8 * GIB, 3 * GIB, 4, GIB // 2), [held], "pirate:v1", plan).endswith(
        "1.5 of 8.0 GiB are free: the base's engine has 3.0, json:v1 3.0 (in use), other programs "
        "on this machine 0.5; end those, or undeploy or unpin one"
    )
    assert refusal(Room(8 * GIB, 3 * GIB, 4), [held], "pirate:v1", plan) == (
        "the engine of pirate:v1 needs 2.9 GiB (0.4 weights + 1.0 KV cache + 1.5 processes); 2.0 "
        "of 8.0 GiB are free: the base's engine has 3.0, json:v1 3.0 (in use); raise memory_gib, "
        "or undeploy or unpin one"
    )
