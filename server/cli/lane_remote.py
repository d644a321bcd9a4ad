"""Lanes over a server's admin API: a part of RemoteBackend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from adapters.lanes.models import LaneChange, Route
from adapters.references import check_name, parse_reference
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

T = TypeVar("T")


class RemoteLanes:
    """The lanes of one server."""

    def _call(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        raise NotImplementedError

    def deploy(self, reference: str, request: DeployRequest) -> DeployAnswer:
        body = request.model_dump(mode="json")
        return self._call("PUT", _path("deployments", reference), DeployAnswer, body)

    def undeploy(self, reference: str) -> DeploymentShown:
        return self._call("DELETE", _path("deployments", reference), DeploymentShown)

    def deployments(self) -> list[DeploymentShown]:
        return self._call("GET", "/deployments", list[DeploymentShown])

    def deployment(self, reference: str) -> DeploymentShown:
        return self._call("GET", _path("deployments", reference), DeploymentShown)

    def pin(self, reference: str, pinned: bool) -> DeploymentShown:
        method = "PUT" if pinned else "DELETE"
        return self._call(method, _path("pins", reference), DeploymentShown)

    def quarantine(self, reference: str, reason: str | None) -> DeploymentShown:
        path = _path("quarantines", reference)
        if reason is None:
            return self._call("DELETE", path, DeploymentShown)
        return self._call("PUT", path, DeploymentShown, {"reason": reason})

    def route(self, reference: str, request: RouteRequest) -> Route:
        body = request.model_dump(mode="json")
        return self._call("PUT", _path("routes", reference), Route, body)

    def unroute(self, reference: str) -> RouteShown:
        return self._call("DELETE", _path("routes", reference), RouteShown)

    def route_of(self, reference: str) -> RouteShown:
        return self._call("GET", _path("routes", reference), RouteShown)

    def routes(self) -> list[Route]:
        return self._call("GET", "/routes", list[Route])

    def lane_history(self, name: str) -> list[LaneChange]:
        path = f"/adapters/{quote(check_name(name), safe='')}/lanes/history"
        return self._call("GET", path, list[LaneChange])

    def prefetch(self, reference: str) -> Prefetched:
        return self._call("POST", _path("prefetch", reference), Prefetched)

    def top(self, window: float, rows: int) -> TopDocument:
        return self._call("GET", f"/top?window={window:g}&rows={rows}", TopDocument)

    def advice(self) -> list[Advice]:
        return self._call("GET", "/advice", list[Advice])

    def residency(self) -> Sequence[ResidencyDocument]:
        return [self._call("GET", "/residency", ResidencyDocument)]


def _path(kind: str, reference: str) -> str:
    # Parsed here too: an empty or odd one must not become another route.
    return f"/{kind}/{quote(str(parse_reference(reference)), safe='')}"
