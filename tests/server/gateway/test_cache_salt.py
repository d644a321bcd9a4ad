"""The salt that parts tenants in the engine's prefix cache: one vLLM takes, and nobody else's."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import InvalidRequest
from server.gateway.cache_salt import salt_cache

TENANTS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", fullmatch=True)
# vLLM's own rule, in entrypoints/generate/base/protocol.py.
TAKEN = re.compile(r"[^@/\\\0]{1,128}")
OWN = st.one_of(st.none(), st.text(min_size=1, max_size=300))


def salted(tenant: str, own: str | None) -> str:
    document: dict[str, Any] = {} if own is None else {"cache_salt": own}
    salt_cache(document, tenant)
    return str(document["cache_salt"])


@given(st.tuples(TENANTS, OWN), st.tuples(TENANTS, OWN))
def test_two_share_a_salt_if_tenant_and_own_salt_are_the_same(
    one: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    assert (salted(*one) == salted(*other)) == (one == other)
    assert TAKEN.fullmatch(salted(*one))


@given(TENANTS, TENANTS)
def test_nobody_takes_anothers_salt_by_saying_it(one: str, other: str) -> None:
    assert salted(one, salted(other, None)) not in (salted(other, None), salted(one, None))


@pytest.mark.parametrize("wrong", ["", 5, [], {}, False])
def test_what_is_no_salt(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="cache_salt"):
        salt_cache({"cache_salt": wrong}, "acme")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(JSON)
def test_messages_of_any_shape_are_left_to_the_engine(messages: Any) -> None:
    document = {"messages": copy.deepcopy(messages)}
    salt_cache(document, "acme")
    assert document["messages"] == messages


def test_an_images_uuid_is_the_tenants_own() -> None:
    def uuid_of(tenant: str, uuid: object) -> object:
        part = {"type": "image_url", "uuid": uuid}
        salt_cache({"messages": [{"content": "x"}, {"content": [part]}]}, tenant)
        return part["uuid"]

    assert uuid_of("acme", "logo") == uuid_of("acme", "logo")
    assert uuid_of("acme", "logo") not in ("logo", uuid_of("beta", "logo"))
    assert uuid_of("acme", None) is None
