"""`/admin/v1`: where versions are served, how traffic is split, and what the server sees of it."""

from __future__ import annotations

from typing import Protocol

from server.gateway.lane_models import (
    Advice,
    MergedState,
    Prefetched,
    ResidencyDocument,
    TopDocument,
)


class LaneOperations(Protocol):
    """What the admin API asks of the running server; every method raises AdapterctlError only."""

    def top(self, window: float = 60.0, rows: int = 50) -> TopDocument:
        """Traffic, engines and advice of the last 60 or 900 seconds."""

    def advice(self) -> list[Advice]:
        """Which versions should change their lane, by what was measured."""

    def merged(self) -> list[MergedState]:
        """Every merged model that deployments name, and those whose engines still end."""

    async def prefetch(self, reference: str) -> Prefetched:
        """Hot: loads the version into the engine and returns when it is there. Merged: begins the
        start of its engine and returns at once. Raises what a request for it would."""

    async def residency(self) -> ResidencyDocument:
        """What the base's engine holds; raises EngineUnavailable while it is not ready."""
