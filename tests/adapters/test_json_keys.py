"""The key that a JSON object has twice."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.json_keys import repeated_key


@given(st.lists(st.text(max_size=3), max_size=8))
def test_the_first_that_comes_again_is_found(keys: list[str]) -> None:
    expected = next((key for i, key in enumerate(keys) if key in keys[i + 1 :]), None)
    found: list[str | None] = []

    def hook(pairs: list[tuple[str, Any]]) -> None:
        found.append(repeated_key(pairs))

    json.loads(
        "{" + ", ".join(f"{json.dumps(key)}: 1" for key in keys) + "}", object_pairs_hook=hook
    )
    assert found == [expected]
