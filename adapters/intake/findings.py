"""Faults collected while an artifact is checked: each kind once, with how many more there are."""

from __future__ import annotations

from adapters.errors import ArtifactError


class Findings:
    """Faults by kind, in the order they were found; ten thousand alike make one sentence."""

    def __init__(self) -> None:
        self._first: dict[str, ArtifactError] = {}
        self._count: dict[str, int] = {}

    def add(self, kind: str, fault: ArtifactError) -> None:
        self._first.setdefault(kind, fault)
        self._count[kind] = self._count.get(kind, 0) + 1

    def errors(self) -> tuple[ArtifactError, ...]:
        """One error a kind, its message ending with the number of others of the kind."""
        found = []
        for kind, fault in self._first.items():
            more = self._count[kind] - 1
            text = fault.message if more == 0 else f"{fault.message} (and {more} more like it)"
            found.append(type(fault)(text))
        return tuple(found)

    def __bool__(self) -> bool:
        return bool(self._first)
