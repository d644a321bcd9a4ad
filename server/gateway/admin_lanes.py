"""`/admin/v1`: where versions are served, how traffic is split, and what the server sees of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from adapters.catalog import Catalog
from adapters.lanes.models import LaneChange, Route
from server.gateway.admin_route import actor_of
from server.gateway.admin_scopes import check_visible
from server.gateway.lane_changes import (
    deployed,
    quarantined,
    repinned,
    route_shown,
    routed,
    undeployed,
)
from server.gateway.lane_models import (
    Advice,
    DeployAnswer,
    DeploymentShown,
    DeployRequest,
    MergedState,
    Prefetched,
    QuarantineRequest,
    ResidencyDocument,
    RouteRequest,
    RouteShown,
    TopDocument,
)
from server.gateway.lane_states import Running, all_shown, shown_of
from server.gateway.route_status import RouteStatus

Window = Annotated[float, Query(gt=0, description="Seconds: 60 or 900.")]
Rows = Annotated[int, Query(ge=1, le=10_000, description="At most so many versions.")]


class LaneOperations(Protocol):
    """What the admin API asks of the running server; every method raises AdapterctlError only.

    Called on the event loop.
    """

    def top(self, window: float = 60.0, rows: int = 50) -> TopDocument:
        """Traffic, engines and advice of the last 60 or 900 seconds."""

    def advice(self) -> list[Advice]:
        """Which versions should change their lane, by what was measured."""

    def merged(self) -> list[MergedState]:
        """Every merged model that deployments name, and those whose engines still end."""

    async def prefetch(self, reference: str) -> Prefetched:
        """Hot: loads the version into the engine and returns when it is there. Merged: begins the
        start of its engine and returns at once. Raises what a request for it would."""

    def route_status(self, route_id: int) -> RouteStatus:
        """What was measured under the route since it is what it is."""

    def check_pin(self, reference: str) -> None:
        """Raises Conflict where the base's engine has no slot left for one more pinned version."""

    async def residency(self) -> ResidencyDocument:
        """What the base's engine holds; raises EngineUnavailable while it is not ready."""


def add_lane_routes(
    router: APIRouter,
    catalog: Catalog,
    lanes: LaneOperations,
    refresh: Callable[[], object],
    *,
    at_once: int | None = None,
) -> None:
    """Everything that `adapterctl deploy`, `route`, `pin`, `prefetch`, `top` and `advice` do."""
    _add_deployment_routes(router, catalog, lanes, at_once)
    _add_quarantine_routes(router, catalog, lanes)
    _add_pin_routes(router, catalog, lanes, refresh)
    _add_traffic_routes(router, catalog, lanes)
    _add_seeing_routes(router, lanes)


def _add_deployment_routes(
    router: APIRouter, catalog: Catalog, lanes: LaneOperations, at_once: int | None
) -> None:
    path = "/deployments/{reference}"

    @router.get("/deployments", summary="List the deployments and what becomes of them")
    async def deployments() -> list[DeploymentShown]:
        return await run_in_threadpool(all_shown, catalog, Running.of(lanes.merged()))

    @router.get(path, summary="What becomes of a version's deployment")
    async def deployment(reference: str) -> DeploymentShown:
        return await run_in_threadpool(shown_of, catalog, reference, Running.of(lanes.merged()))

    @router.put(path, summary="Say in which lane a version is served; makes its merged model")
    async def deploy(request: Request, reference: str, body: DeployRequest) -> DeployAnswer:
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(deployed, catalog, reference, body, actor, running, at_once)

    @router.delete(path, summary="Take a version out of service")
    async def undeploy(request: Request, reference: str) -> DeploymentShown:
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(undeployed, catalog, reference, actor, running)


def _add_quarantine_routes(router: APIRouter, catalog: Catalog, lanes: LaneOperations) -> None:
    path = "/quarantines/{reference}"

    @router.put(path, summary="Keep a version, and all of its content, from every engine")
    async def quarantine(
        request: Request, reference: str, body: QuarantineRequest
    ) -> DeploymentShown:
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(quarantined, catalog, reference, body.reason, actor, running)

    @router.delete(path, summary="Let engines have it again")
    async def lift(request: Request, reference: str) -> DeploymentShown:
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(quarantined, catalog, reference, None, actor, running)


def _add_pin_routes(
    router: APIRouter, catalog: Catalog, lanes: LaneOperations, refresh: Callable[[], object]
) -> None:
    path = "/pins/{reference}"

    @router.put(path, summary="Keep a version in its slot, or its merged engine running")
    async def pin(request: Request, reference: str) -> DeploymentShown:
        await run_in_threadpool(refresh)
        lanes.check_pin(reference)
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(repinned, catalog, reference, True, actor, running)

    @router.delete(path, summary="Pin it no longer")
    async def unpin(request: Request, reference: str) -> DeploymentShown:
        running, actor = Running.of(lanes.merged()), actor_of(request)
        return await run_in_threadpool(repinned, catalog, reference, False, actor, running)

    @router.post("/prefetch/{reference}", summary="Load a version before the first request does")
    async def prefetch(reference: str) -> Prefetched:
        # A job or a command line on the store may have deployed it this very moment.
        await run_in_threadpool(refresh)
        return await lanes.prefetch(reference)


def _add_traffic_routes(router: APIRouter, catalog: Catalog, lanes: LaneOperations) -> None:
    path = "/routes/{reference}"

    @router.get("/routes", summary="List the routes")
    def routes() -> list[Route]:
        return list(catalog.routes())

    @router.get(path, summary="How a reference's traffic is split, and what was measured of it")
    async def show(reference: str) -> RouteShown:
        shown = await run_in_threadpool(route_shown, catalog, reference)
        if shown.route is None:
            return shown
        return shown.model_copy(update={"measured": lanes.route_status(shown.route.id)})

    @router.put(path, summary="Split a reference's traffic")
    def route(request: Request, reference: str, body: RouteRequest) -> Route:
        return routed(catalog, reference, body, actor_of(request))

    @router.delete(path, summary="Send all of it to the version that the tag means")
    def unroute(request: Request, reference: str) -> RouteShown:
        catalog.unroute(reference, actor=actor_of(request))
        return route_shown(catalog, reference)

    @router.get("/adapters/{name}/lanes/history", summary="Its deployments, routes and rollbacks")
    def history(request: Request, name: str) -> list[LaneChange]:
        check_visible(request, name)
        return list(catalog.lane_history(name))


def _add_seeing_routes(router: APIRouter, lanes: LaneOperations) -> None:
    @router.get("/top", summary="Traffic by version and lane, engines, advice")
    async def top(window: Window = 60.0, rows: Rows = 50) -> TopDocument:
        return lanes.top(window, rows)

    @router.get("/advice", summary="Which versions should change their lane")
    async def advice() -> list[Advice]:
        return lanes.advice()

    @router.get("/residency", summary="What the base's engine holds in slots and in memory")
    async def residency() -> ResidencyDocument:
        return await lanes.residency()
