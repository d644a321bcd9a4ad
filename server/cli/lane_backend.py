"""What the commands about lanes need of a backend; see backend.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adapters.lanes.models import LaneChange, Route
from server.gateway.lane_models import (
    Advice,
    DeployAnswer,
    DeploymentShown,
    DeployRequest,
    Prefetched,
    ResidencyDocument,
    RouteRequest,
    RouteShown,
    TopDocument,
)


class LaneBackend(Protocol):
    """Deployments and routes; with a server running, what it serves and measures, too.

    What only a running server knows raises ServerUnreachable where none runs.
    """

    def deploy(self, reference: str, request: DeployRequest) -> DeployAnswer:
        """Say in which lane a version is served; returns at once, with the job if one is needed."""

    def undeploy(self, reference: str) -> DeploymentShown:
        """Take a version out of service."""

    def deployments(self) -> Sequence[DeploymentShown]:
        """All of them, by name and version."""

    def deployment(self, reference: str) -> DeploymentShown:
        """What becomes of one; NotFound of a version that nobody ever deployed or pinned."""

    def pin(self, reference: str, pinned: bool) -> DeploymentShown:
        """Keep a version in its slot or its engine running, or no longer."""

    def quarantine(self, reference: str, reason: str | None) -> DeploymentShown:
        """Keep a version from every engine, or (None) lift that."""

    def route(self, reference: str, request: RouteRequest) -> Route:
        """Split the traffic of NAME:TAG; replaces the route that was there."""

    def unroute(self, reference: str) -> RouteShown:
        """Send all of it to what the tag means."""

    def route_of(self, reference: str) -> RouteShown:
        """What NAME:TAG means, and its route if it has one."""

    def routes(self) -> Sequence[Route]:
        """All of them, by name and tag."""

    def lane_history(self, name: str) -> Sequence[LaneChange]:
        """Every change of an adapter's deployments and routes."""

    def prefetch(self, reference: str) -> Prefetched:
        """Load a version before the first request does, or begin the start of its engine."""

    def top(self, window: float, rows: int) -> TopDocument:
        """What the server serves, and to whom, in the last `window` seconds (60 or 900).

        The first `rows` of the versions by traffic.
        """

    def advice(self) -> Sequence[Advice]:
        """Which versions should change their lane."""

    def residency(self) -> Sequence[ResidencyDocument]:
        """What each server's engine holds."""
