"""The revisions of the database that this code knows, oldest first.

Kept apart from `migrations/` so that opening a store needs no alembic; a test compares the two.
"""

from __future__ import annotations

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
HEAD = REVISIONS[-1]


def before(revision: str) -> str:
    """The revision that this one follows."""
    return REVISIONS[REVISIONS.index(revision) - 1]
