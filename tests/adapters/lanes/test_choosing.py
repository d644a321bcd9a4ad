"""Choosing: one key, one answer; shares come true; what is not there is not chosen."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.frozen import Lane
from adapters.lanes.choosing import Choice, choose, deployed_lane, merged_model, shadows_of
from adapters.lanes.models import MERGED_MODEL, Shadow, Split
from adapters.models import AdapterRecord
from adapters.references import parse_reference
from tests.adapters.lanes.records import adapter, deployment, route, version

KEYS = [f"request-{n}" for n in range(4000)]


def chosen(
    of: AdapterRecord,
    request_id: str = "r",
    *,
    ref: str = "bot:prod",
    user: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Choice:
    parsed = parse_reference(ref)
    number = parsed.version or of.tags[parsed.tag or of.default_tag]
    stable = of.versions[number]
    return choose(of, parsed, stable, request_id=request_id, user=user, headers=headers or {})


def canaries(of: AdapterRecord) -> set[str]:
    return {key for key in KEYS if chosen(of, key).role_is_canary}


def split(number: int, share: float, lane: Lane | None = None) -> Split:
    return Split(number=number, share=share, lane=lane)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.5, 0.999, 1.0])
def test_a_share_comes_true(share: float) -> None:
    """Within four standard deviations of a fair coin's; the keys are fixed, so this never flips."""
    found = len(canaries(adapter(route(split(4, share)))))
    assert abs(found - share * len(KEYS)) <= 4 * (len(KEYS) * share * (1 - share)) ** 0.5


@given(
    small=st.floats(0, 1),
    large=st.floats(0, 1),
    key=st.text(max_size=50),
    sticky=st.sampled_from(["request", "user"]),
)
def test_who_is_inside_stays_inside_when_the_share_grows(
    small: float, large: float, key: str, sticky: str
) -> None:
    small, large = sorted((small, large))

    def inside(share: float) -> bool:
        of = adapter(route(split(4, share), sticky=sticky))  # type: ignore[arg-type]
        return chosen(of, key, user=key).role_is_canary

    assert inside(large) or not inside(small)


@given(
    shares=st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 0.03)), min_size=1, max_size=3),
    key=st.text(max_size=50),
)
def test_so_it_is_with_several_taken_together(shares: list[tuple[float, float]], key: str) -> None:
    before = adapter(route(*(split(n, s) for n, (s, _) in zip((4, 1, 2), shares, strict=False))))
    after = adapter(route(*(split(n, s + g) for n, (s, g) in zip((4, 1, 2), shares, strict=False))))
    assert chosen(after, key).role_is_canary or not chosen(before, key).role_is_canary


@given(
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    request_id=st.text(max_size=80),
    user=st.none() | st.text(max_size=80),
    headers=st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
)
def test_it_is_always_one_of_the_route_and_always_the_same(
    shares: list[float], request_id: str, user: str | None, headers: dict[str, str]
) -> None:
    splits = [split(n, share) for n, share in zip((4, 1, 2), shares, strict=False)]
    of = adapter(route(*splits, sticky="user"))
    one = chosen(of, request_id, user=user, headers=headers)
    again = chosen(of.model_copy(deep=True), request_id, user=user, headers=headers)
    assert one == again
    assert one.role_is_canary == (one.version.number != 3)
    assert one.version.number in {3, *(s.number for s in splits)}


def test_a_user_gets_the_same_whatever_the_request() -> None:
    of = adapter(route(split(4, 0.5), sticky="user"))
    for user in ("ann", "bob", "carol", "dave"):
        by_body = {chosen(of, key, user=user).version.number for key in KEYS[:50]}
        by_header = {
            chosen(of, key, headers={"x-user-id": user}).version.number for key in KEYS[:50]
        }
        assert len(by_body) == 1 and by_body == by_header
    # Nobody named: each request by itself.
    assert {chosen(of, key).version.number for key in KEYS[:50]} == {3, 4}
    # Not sticky: a user is of no account.
    of = adapter(route(split(4, 0.5)))
    assert {chosen(of, key, user="ann").version.number for key in KEYS[:50]} == {3, 4}


def test_shares_of_several_lie_beside_each_other() -> None:
    of = adapter(route(split(4, 0.25), split(1, 0.25)))
    counts = {n: sum(chosen(of, key).version.number == n for key in KEYS) for n in (1, 3, 4)}
    assert sum(counts.values()) == len(KEYS)
    assert all(abs(counts[n] / len(KEYS) - share) < 0.03 for n, share in ((1, 0.25), (4, 0.25)))


def test_tags_and_adapters_draw_apart() -> None:
    """Who is unlucky with one route must not be with all."""
    prod = adapter(route(split(4, 0.5)))
    latest = adapter(route(split(4, 0.5), tag="latest"))
    first = canaries(prod)
    second = {key for key in KEYS if chosen(latest, key, ref="bot").role_is_canary}
    assert abs(len(first & second) / len(KEYS) - 0.25) < 0.03


def test_a_header_goes_before_shares_and_others_do_not() -> None:
    by_header = Split(number=4, share=0, header=("x-canary", "1"))
    of = adapter(route(split(1, 1.0), by_header))
    assert chosen(of, headers={"x-canary": "1"}).version.number == 4
    assert chosen(of, headers={"x-canary": "0"}).version.number == 1
    assert chosen(of).version.number == 1


@pytest.mark.parametrize("ref", ["bot:v3", "bot@sha256:" + "0" * 63 + "3"])
def test_a_version_is_never_routed(ref: str) -> None:
    of = adapter(route(split(4, 1.0)), stable=3)
    parsed = parse_reference(ref)
    found = choose(of, parsed, of.versions[3], request_id="r", user=None, headers={})
    assert found == Choice(of.versions[3], None, False, None)


def test_the_bare_name_is_its_default_tag() -> None:
    of = adapter(route(split(4, 1.0), tag="latest"))
    assert chosen(of, ref="bot").version.number == 4
    assert chosen(of, ref="bot:latest").version.number == 4
    assert chosen(of, ref="bot:prod").route is None


@pytest.mark.parametrize(
    ("part", "deployments"),
    [
        (split(3, 1.0), ()),
        (split(3, 1.0, Lane.HOT), ()),
        (split(9, 1.0), ()),
        (split(5, 1.0), ()),
        (split(5, 1.0, Lane.HOT), ()),
        (split(4, 1.0), (deployment(4, None),)),
        (split(4, 1.0, Lane.MERGED), ()),
        (split(4, 1.0, Lane.MERGED), (deployment(4, Lane.HOT, job="j"),)),
        (split(5, 1.0), (deployment(5, Lane.MERGED, job="j"),)),
        (split(3, 1.0, Lane.MERGED), (deployment(3, Lane.MERGED, model="sha256:m"),)),
    ],
)
def test_what_is_the_same_or_cannot_be_served_vanishes(
    part: Split, deployments: tuple[object, ...]
) -> None:
    of = adapter(route(part), deployments=deployments)  # type: ignore[arg-type]
    found = chosen(of)
    assert (found.version.number, found.lane, found.role_is_canary) == (3, None, False)
    assert found.route == of.routes["prod"]
    headed = part.model_copy(update={"header": ("x-canary", "1")})
    of = adapter(route(headed), deployments=deployments)  # type: ignore[arg-type]
    assert not chosen(of, headers={"x-canary": "1"}).role_is_canary


def test_a_split_that_vanishes_leaves_the_others_their_users() -> None:
    both = adapter(route(split(4, 0.2), split(1, 0.2)))
    without = adapter(route(split(4, 0.2), split(1, 0.2)), deployments=(deployment(4, None),))
    for key in KEYS[:500]:
        before, after = chosen(both, key).version.number, chosen(without, key).version.number
        assert after == (3 if before == 4 else before)


@pytest.mark.parametrize(
    ("part", "deployments"),
    [
        (split(4, 1.0, Lane.MERGED), (deployment(4, Lane.HOT, model="sha256:m"),)),
        (split(3, 1.0, Lane.MERGED), (deployment(3, Lane.HOT, model="sha256:m"),)),
        (split(3, 1.0, Lane.HOT), (deployment(3, Lane.MERGED, model="sha256:m"),)),
        (split(5, 1.0), (deployment(5, Lane.MERGED, model="sha256:m"),)),
        (split(5, 1.0, Lane.MERGED), (deployment(5, None, model="sha256:m"),)),
    ],
)
def test_another_lane_of_the_same_version_is_a_canary(
    part: Split, deployments: tuple[object, ...]
) -> None:
    of = adapter(route(part), deployments=deployments)  # type: ignore[arg-type]
    found = chosen(of)
    assert (found.version.number, found.lane, found.role_is_canary) == (
        part.number,
        part.lane,
        True,
    )


def test_where_a_version_is_served() -> None:
    merged = version(2, lane=Lane.MERGED, method=MERGED_MODEL)
    of = adapter(
        versions={1: version(1), 2: merged, 3: version(3), 4: version(4)},
        deployments=(deployment(3, Lane.MERGED, model="sha256:m"), deployment(4, None)),
    )
    lanes = {number: deployed_lane(of, v) for number, v in of.versions.items()}
    assert lanes == {1: Lane.HOT, 2: None, 3: Lane.MERGED, 4: None}
    models = {number: merged_model(of, v) for number, v in of.versions.items()}
    assert models == {1: None, 2: merged.digest, 3: "sha256:m", 4: None}


@settings(max_examples=30)
@given(share=st.floats(0.01, 1))
def test_shadows_are_drawn_by_themselves(share: float) -> None:
    first, second = Shadow(number=4, share=share), Shadow(number=1, share=share)
    same = Shadow(number=3, share=1.0)
    routed = route(split(6, share), shadows=(first, second, same))
    of = adapter(routed)
    drawn = {key: shadows_of(routed, of.versions[3], key) for key in KEYS[:1500]}
    assert drawn == {key: shadows_of(routed, of.versions[3], key) for key in drawn}
    assert not any(same in found for found in drawn.values())
    for one in (first, second):
        found = sum(one in shadows for shadows in drawn.values()) / len(drawn)
        assert abs(found - share) < 0.06
    both = sum(len(found) == 2 for found in drawn.values()) / len(drawn)
    assert abs(both - share * share) < 0.06
