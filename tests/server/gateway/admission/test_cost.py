"""What a body says of its cost; nonsense says nothing and breaks nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.gateway.admission.tickets import Cost

SIMPLE: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, -1, 3, 10**30, 1.5, float("nan"), "", "2", {}]
)
JSON = SIMPLE | st.lists(SIMPLE, max_size=3) | st.lists(st.lists(SIMPLE, max_size=2), max_size=3)
NAMES = ("n", "best_of", "prompt", "input", "max_tokens", "max_completion_tokens", "stream")


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ({"messages": []}, 1),
        ({"n": 4}, 4),
        ({"n": 2, "best_of": 5}, 5),
        ({"prompt": "one"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["one", "two", "three"], "n": 2}, 6),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"input": [{"role": "user", "content": "a conversation"}, {"role": "user"}]}, 1),
        ({"input": ["embed", "these"]}, 2),
        ({"n": 10**9}, 64),
        ({"n": "2"}, 1),
        ({"n": True}, 1),
    ],
)
def test_places_are_the_sequences_that_the_engine_works_on(
    body: dict[str, Any], places: int
) -> None:
    assert Cost.of(body, 100).places == places


def test_limits_are_read_in_every_dialect() -> None:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        assert Cost.of({name: 7}, 100).max_tokens == 7
    assert Cost.of({}, 400) == Cost(prompt_tokens=100)
    assert Cost.of({"stream": True}, 0) == Cost(prompt_tokens=1, streams=True)


@given(st.dictionaries(st.sampled_from(NAMES), JSON), st.integers(0, 2**30))
def test_any_body_has_a_cost(body: dict[str, Any], size: int) -> None:
    cost = Cost.of(body, size)
    assert 1 <= cost.places <= 64
    assert cost.prompt_tokens >= 1
