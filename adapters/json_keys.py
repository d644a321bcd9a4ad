"""JSON objects in which a key stands twice: Python's reader keeps the last and says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def repeated_key(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The first key of an object's pairs that comes again; None: each is there once.

    For an `object_pairs_hook` of `json.loads`, which raises what fits its file.
    """
    if len(dict(pairs)) == len(pairs):
        return None
    counts = Counter(key for key, _ in pairs)
    return next(key for key, count in counts.items() if count > 1)
