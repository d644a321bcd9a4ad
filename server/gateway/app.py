"""The gateway's ASGI application, put together from its parts."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

import adapters
from adapters.errors import AdapterctlError
from server.engine.engines import EngineState
from server.gateway.auth import AdminGate
from server.gateway.entry import Entry
from server.gateway.errors import expected, install_error_handlers, unexpected
from server.gateway.exposition import Exposition
from server.gateway.models_route import models_router
from server.gateway.relay import relay
from server.gateway.request_notes import notes_of
from server.gateway.routes import ENGINE_ROUTES, EngineRoute
from server.gateway.state import GatewayState
from server.gateway.stopping import not_ready

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    state: GatewayState,
    admin: APIRouter,
    lifespan: Lifespan,
    metrics_gate: AdminGate | None = None,
) -> FastAPI:
    """OpenAI's routes, the admin API, health, metrics and documentation.

    `metrics_gate` lets in who may read the metrics; None: everybody.
    """
    app = _Application(
        title="adapterctl",
        summary="Many fine-tunes of one base behind one OpenAI-compatible endpoint.",
        version=adapters.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.enter_by(state)
    install_error_handlers(app)
    app.include_router(health_router(state, metrics_gate))
    app.include_router(models_router(state))
    for route in ENGINE_ROUTES:
        _add_engine_route(app, state, route)
    app.include_router(admin)
    return app


class _Application(FastAPI):
    """FastAPI's, behind an Entry, and beside the short way to the engine's routes."""

    def enter_by(self, state: GatewayState) -> None:
        """Once, before anything is served."""
        origins = state.settings.cors_origins
        app = _ShortWay(super().__call__, state)
        self._entry = Entry(app, state.stopping, origins=origins, tracing=state.tracing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._entry(scope, receive, send)


class _ShortWay:
    """Requests for the engine go to the relay; everything else is the application's.

    FastAPI's layers would ask for each of them again where it goes and who handles its errors
    (ADR 29). Its documentation has these routes all the same.
    """

    def __init__(self, app: ASGIApp, state: GatewayState):
        self._app = app
        self._state = state
        self._routes = {route.path: route for route in ENGINE_ROUTES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            try:
                answer = await relay(request, self._state, route)
            except AdapterctlError as error:
                answer = expected(request, error)
            await answer(scope, receive, send)
        except Exception as error:
            failure = unexpected(request, error)
            notes = notes_of(scope)
            if notes is None or notes.status is None:
                await failure(scope, receive, send)
            raise


def health_router(state: GatewayState, metrics_gate: AdminGate | None = None) -> APIRouter:
    """`/healthz`: the process lives. `/readyz`: it can answer. `/metrics`: Prometheus."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="The gateway's process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Requests can be answered")
    async def readyz() -> dict[str, str]:
        if state.stopping.begun:
            raise not_ready()
        state.engine.transport()
        return {"status": EngineState.READY.value}

    exposition = state.exposition or Exposition(state.metrics.registry)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        if metrics_gate is not None:
            await metrics_gate.admit(request)
        text = await exposition.text()
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    @router.get("/metrics/picker", summary="What an endpoint picker reads", response_class=Response)
    async def picker_metrics(request: Request) -> Response:
        if metrics_gate is not None:
            await metrics_gate.admit(request)
        text = b"" if state.picker is None else state.picker.text()
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})

    return router


def _add_engine_route(app: FastAPI, state: GatewayState, route: EngineRoute) -> None:
    async def endpoint(request: Request) -> Response:
        return await relay(request, state, route)

    app.router.add_api_route(
        route.path,
        endpoint,
        methods=["POST"],
        summary=route.summary,
        operation_id="engine" + route.path.replace("/", "_"),
        tags=["openai"],
        response_class=Response,
        openapi_extra=_BODY,
        route_class_override=_EngineRoute,
    )


class _EngineRoute(APIRoute):
    """An endpoint that takes the request itself: FastAPI has nothing to find out for it, and
    would spend 50 µs on each request on that."""

    def get_route_handler(self) -> Handler:
        return self.endpoint


# The engine defines the bodies; what the gateway itself needs of them is `model`.
_BODY: dict[str, Any] = {
    # For /docs, which then sends the key; not everywhere is one needed.
    "security": [{"HTTPBearer": []}, {}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {
                        "model": {"type": "string", "description": "A reference or a base's name."}
                    },
                    "additionalProperties": True,
                }
            }
        },
    },
}
